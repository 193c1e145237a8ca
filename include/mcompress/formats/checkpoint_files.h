#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mcompress/formats/array.h"

namespace mcompress {

// What a model path holds, told from its content.
enum class ModelFormat { kTorchScript, kStateDict, kLegacyStateDict, kSafetensors, kHuggingFace, kGguf };
const char* name_of(ModelFormat format);  // "torchscript", "state_dict", ...

// The arrays of a checkpoint without a program, whatever file they came from. Arrays point into
// the maps, which live as long as this does.
struct CheckpointFiles {
  ModelFormat format = ModelFormat::kSafetensors;
  std::vector<Array> arrays;
  std::vector<SharedFile> files;  // the maps; for a Hugging Face folder, one a shard
  std::vector<size_t> file_of;    // index into files, by array
  std::map<std::string, std::string> metadata;
  std::vector<std::string> notes;
};

// Recognises a model by its content. Throws Error: 66 missing; 65 for anything that is no model,
// with a hint for known strangers (Git LFS pointer, ONNX, HDF5, 7z, tar, .pt2, HTML, ...).
ModelFormat detect_model(const std::string& path);

// Reads every format but TorchScript and GGUF. A Hugging Face folder is config.json with model.safetensors,
// or with model.safetensors.index.json and its shards, which must be plain names inside the folder
// and agree with the index. Throws Error(65).
CheckpointFiles read_checkpoint(const std::string& path, ModelFormat format);

}  // namespace mcompress
