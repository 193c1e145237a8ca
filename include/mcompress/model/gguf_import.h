#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "mcompress/base/output.h"
#include "mcompress/model/decoder.h"
#include "mcompress/model/gguf_export.h"

namespace mcompress {

// The language model of a GGUF file as a Hugging Face folder: the opposite of gguf_export.h, for the same
// architectures.

// The config.json of the folder, as transformers 4 and 5 read it. Throws Error(65) for ways of rotating
// positions that are not written.
nlohmann::ordered_json config_json(const DecoderConfig& of_gguf);

// What is read of it: the configuration with the names of a folder. Throws Error(65) where that is another
// model.
DecoderConfig folder_config(const DecoderConfig& of_gguf);

// Writes all tensors of the model in float32, in one model.safetensors or shards with their index, and the
// other files by name. `config` is folder_config() of the model's.
using FolderTexts = std::map<std::string, std::string>;
void write_folder(const Decoder& gguf, const DecoderConfig& config, const FolderTexts& texts,
                  uint64_t shard_bytes, const OutputFolder& folder);
uint64_t predict_folder_bytes(const DecoderConfig& config, const FolderTexts& texts, uint64_t shard_bytes);

}  // namespace mcompress
