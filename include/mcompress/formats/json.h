#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace mcompress {

// Parses JSON strictly: at most 64 levels deep, no duplicate keys, valid UTF-8, nothing behind the
// document. `what` names the text in messages ("header of 'x'"). Throws Error(65).
nlohmann::json parse_json(std::string_view text, const std::string& what);

}  // namespace mcompress
