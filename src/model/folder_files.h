#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "mcompress/base/output.h"

namespace mcompress {

// The files of a Hugging Face folder beside its shards.
constexpr const char* kIndexName = "model.safetensors.index.json";

// A JSON file with its keys in their order. Throws Error(65).
nlohmann::ordered_json read_ordered(const std::string& path);

void write_text(const std::string& path, const std::string& text);

// The files of the source that are copied as they are: all but shards and those that are made anew, by name.
std::vector<std::filesystem::path> files_to_copy(const std::string& source,
                                                 const std::map<std::string, std::string>& texts);
void copy_files(const std::vector<std::filesystem::path>& paths, const OutputFolder& folder);

}  // namespace mcompress
