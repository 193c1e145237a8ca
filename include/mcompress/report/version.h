#pragma once

#include <nlohmann/json_fwd.hpp>

namespace mcompress {

extern const char* const kVersion;  // "0.1.0", from CMakeLists.txt

// The program, its LibTorch, compiler and CPU, as in the report.
nlohmann::ordered_json tool_json();

}  // namespace mcompress
