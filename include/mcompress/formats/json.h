#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace mcompress {

// Parses JSON strictly: at most 64 levels deep, no duplicate keys, valid UTF-8, nothing behind the
// document. `what` names the text in messages ("header of 'x'"). Throws Error(65).
nlohmann::json parse_json(std::string_view text, const std::string& what);

// The same of a file, which messages name by its path.
nlohmann::json read_json_file(const std::string& path);

// The model_type of a folder's config.json; empty where it has none.
std::string model_type_of(const std::string& folder);

}  // namespace mcompress
