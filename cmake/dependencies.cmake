# Every dependency comes from the system or from -DTorch_DIR; nothing is downloaded here.
macro(require_package name debian_package)
  find_package(${name} ${ARGN} QUIET)
  if(NOT ${name}_FOUND)
    message(FATAL_ERROR "${name} was not found. On Debian: apt-get install ${debian_package}")
  endif()
endmacro()

require_package(fmt libfmt-dev)
require_package(spdlog libspdlog-dev)
require_package(nlohmann_json nlohmann-json3-dev)
require_package(CLI11 libcli11-dev)
require_package(ZLIB zlib1g-dev)
require_package(OpenSSL libssl-dev COMPONENTS Crypto)
find_library(PCRE2_LIBRARY pcre2-8)
if(NOT PCRE2_LIBRARY)
  message(FATAL_ERROR "PCRE2 was not found. On Debian: apt-get install libpcre2-dev")
endif()

find_library(ZSTD_LIBRARY zstd)
if(NOT ZSTD_LIBRARY)
  message(FATAL_ERROR "zstd was not found. On Debian: apt-get install libzstd-dev")
endif()

find_library(UTF8PROC_LIBRARY utf8proc)
if(NOT UTF8PROC_LIBRARY)
  message(FATAL_ERROR "utf8proc was not found. On Debian: apt-get install libutf8proc-dev")
endif()

if(MCOMPRESS_TORCH)
  # A wheel that this checkout installed into .venv is found without help.
  file(GLOB MCOMPRESS_WHEEL ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  list(APPEND CMAKE_PREFIX_PATH ${MCOMPRESS_WHEEL})
  find_package(Torch 2.13 QUIET)
  if(NOT Torch_FOUND)
    message(FATAL_ERROR "LibTorch 2.13 or newer was not found. Run tools/setup.sh, or pass "
      "-DTorch_DIR=<torch>/share/cmake/Torch of a LibTorch")
  endif()
  message(STATUS "LibTorch ${Torch_VERSION} in ${Torch_DIR}")
  # at::parallel_for is a plain loop in what is compiled without it.
  require_package(OpenMP g++ COMPONENTS CXX)
endif()
