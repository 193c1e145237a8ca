# One interface target holds how our own code is compiled; imported targets keep their own ways.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(mcompress_settings INTERFACE)
target_compile_features(mcompress_settings INTERFACE cxx_std_20)
target_include_directories(mcompress_settings INTERFACE ${PROJECT_SOURCE_DIR}/include)
# LibTorch's wheel is built with NDEBUG, which changes the layout of at::RecordFunction.
target_compile_definitions(mcompress_settings INTERFACE NDEBUG _GLIBCXX_ASSERTIONS)
# GCC 12 warns of overlapping copies in std::string's own operator+ (GCC bug 105651).
target_compile_options(mcompress_settings INTERFACE -Wall -Wextra -Wpedantic -Wno-restrict)
if(MCOMPRESS_WERROR)
  target_compile_options(mcompress_settings INTERFACE -Werror)
endif()
if(MCOMPRESS_SANITIZE)
  # LibTorch hides some type infos, which the vptr check would miss.
  target_compile_options(mcompress_settings INTERFACE -fsanitize=${MCOMPRESS_SANITIZE}
    -fno-sanitize=vptr -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(mcompress_settings INTERFACE -fsanitize=${MCOMPRESS_SANITIZE} -fno-sanitize=vptr)
endif()
