#include "mcompress/formats/checkpoint_files.h"

#include <array>
#include <cstring>
#include <filesystem>
#include <set>
#include <string_view>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/text.h"
#include "mcompress/formats/gguf.h"
#include "mcompress/formats/json.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/state_dict.h"
#include "mcompress/formats/torchscript.h"
#include "mcompress/formats/zip.h"

namespace mcompress {

namespace fs = std::filesystem;

namespace {

struct Stranger {
  std::string_view magic, what;
};

// Files that people pass by mistake, and what to do instead.
constexpr std::array kStrangers = {
    Stranger{"version https://git-lfs", "a Git LFS pointer, not the model; run 'git lfs pull'"},
    Stranger{"\x89HDF\r\n", "an HDF5 file (Keras); export TorchScript or safetensors"},
    Stranger{"7z\xbc\xaf", "a 7z archive; unpack it first"},
    Stranger{"\x28\xb5\x2f\xfd", "a zstd file; unpack it with 'mcompress expand' or 'zstd -d'"},
    Stranger{"\x1f\x8b", "a gzip file; unpack it first"},
    Stranger{"<!DOCTYPE", "an HTML page, probably a failed download"},
    Stranger{"<html", "an HTML page, probably a failed download"},
    Stranger{"\x93NUMPY", "a NumPy array, not a model"}};

bool looks_like_tar(Bytes bytes) {
  constexpr size_t kMagicAt = 257;
  return bytes.size() > kMagicAt + 5 && text_of(bytes.subspan(kMagicAt, 5)) == "ustar";
}

ModelFormat detect_zip(Bytes bytes, const std::string& path) {
  const auto entries = read_zip(bytes, path);
  if (is_torchscript(entries)) return ModelFormat::kTorchScript;
  for (const ZipEntry& entry : entries) {
    if (entry.name.ends_with("models/model.json") || entry.name.ends_with("archive_format")) {
      throw bad_data(
          "'{}' is a .pt2 archive of torch.export, which is not read; save TorchScript with torch.jit.script "
          "or "
          "torch.jit.trace, or the state dict",
          path);
    }
  }
  return ModelFormat::kStateDict;
}

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// A link to itself counts as there, so that opening it tells what is wrong.
bool exists(const std::string& path) {
  std::error_code failure;
  return fs::exists(path, failure) || failure;
}

void refuse_strangers(Bytes bytes, const std::string& path) {
  for (const Stranger& stranger : kStrangers) {
    if (text_of(bytes).starts_with(stranger.magic)) throw bad_data("'{}' is {}", path, stranger.what);
  }
}

void add_safetensors(CheckpointFiles& checkpoint, const std::string& path) {
  auto file = std::make_shared<const MappedFile>(path);
  refuse_strangers(file->bytes(), path);
  SafetensorsFile content = read_safetensors(file->bytes(), path);
  checkpoint.files.push_back(std::move(file));
  for (Array& array : content.arrays) {
    checkpoint.arrays.push_back(std::move(array));
    checkpoint.file_of.push_back(checkpoint.files.size() - 1);
  }
  checkpoint.metadata.merge(content.metadata);
}

// Tensor name -> shard, from the index.
std::map<std::string, std::string> read_index(const std::string& path) {
  const MappedFile file(path);
  const nlohmann::json index = parse_json(text_of(file.bytes()), fmt::format("'{}'", path));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw bad_data("'{}' has no weight_map", path);
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) throw bad_data("'{}' maps '{}' to something that is no file name", path, name);
    const auto file_name = shard.get<std::string>();
    const bool plain = !file_name.empty() &&
                       file_name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos &&
                       file_name != "." && file_name != "..";
    if (!plain) throw bad_data("'{}' maps '{}' to '{}', which is outside the folder", path, name, file_name);
    shards[name] = file_name;
  }
  return shards;
}

void read_shards(CheckpointFiles& checkpoint, const std::string& folder) {
  const std::string index_path = folder + "/" + kIndex;
  const auto shards = read_index(index_path);
  std::set<std::string> names;
  for (const auto& [tensor, shard] : shards) names.insert(shard);
  for (const std::string& name : names) {
    const std::string path = (fs::path(folder) / name).string();
    if (!exists(path)) throw bad_data("shard '{}' of '{}' is missing", name, index_path);
    const size_t before = checkpoint.arrays.size();
    add_safetensors(checkpoint, path);
    for (size_t i = before; i < checkpoint.arrays.size(); ++i) {
      const auto found = shards.find(checkpoint.arrays[i].name);
      if (found == shards.end() || found->second != name) {
        throw bad_data("shard '{}' holds tensor '{}', which '{}' does not place there", path,
                       checkpoint.arrays[i].name, index_path);
      }
    }
  }
  if (checkpoint.arrays.size() != shards.size()) {
    std::set<std::string> present;
    for (const Array& array : checkpoint.arrays) present.insert(array.name);
    for (const auto& [tensor, shard] : shards) {
      if (!present.contains(tensor))
        throw bad_data("shard '{}' lacks tensor '{}', which '{}' places there", shard, tensor, index_path);
    }
  }
}

CheckpointFiles read_folder(const std::string& folder) {
  CheckpointFiles checkpoint{ModelFormat::kHuggingFace, {}, {}, {}, {}, {}};
  const std::string config = folder + "/config.json";
  const MappedFile file(config);
  if (!parse_json(text_of(file.bytes()), fmt::format("'{}'", config)).is_object()) {
    throw bad_data("'{}' is not a JSON object", config);
  }
  if (exists(folder + "/" + kSingle)) {  // before an index, as transformers reads it
    add_safetensors(checkpoint, folder + "/" + kSingle);
  } else {
    read_shards(checkpoint, folder);
  }
  return checkpoint;
}

}  // namespace

const char* name_of(ModelFormat format) {
  switch (format) {
    case ModelFormat::kTorchScript: return "torchscript";
    case ModelFormat::kStateDict: return "state_dict";
    case ModelFormat::kLegacyStateDict: return "legacy_state_dict";
    case ModelFormat::kSafetensors: return "safetensors";
    case ModelFormat::kHuggingFace: return "huggingface";
    case ModelFormat::kGguf: return "gguf";
  }
  return "?";
}

ModelFormat detect_model(const std::string& path) {
  if (fs::is_directory(path)) {
    if (!exists(path + "/config.json"))
      throw bad_data("folder '{}' has no config.json, so it is no Hugging Face model", path);
    if (!exists(path + "/" + kSingle) && !exists(path + "/" + kIndex)) {
      throw bad_data("folder '{}' has no {} and no {}; save the model with safetensors", path, kSingle,
                     kIndex);
    }
    return ModelFormat::kHuggingFace;
  }
  const MappedFile file(path);
  const Bytes bytes = file.bytes();
  if (bytes.empty()) throw bad_data("'{}' is empty; download or export it again", path);
  if (looks_like_zip(bytes)) return detect_zip(bytes, path);
  if (looks_like_legacy_torch_save(bytes)) return ModelFormat::kLegacyStateDict;
  if (looks_like_gguf(bytes)) return ModelFormat::kGguf;
  refuse_strangers(bytes, path);
  if (looks_like_tar(bytes))
    throw bad_data("'{}' is a tar archive, as PyTorch wrote before 0.2; save it again with a newer PyTorch",
                   path);
  if (bytes[0] == std::byte{0x80}) {
    throw bad_data(
        "'{}' is a plain pickle, not written by torch.save; save the state dict with torch.save or "
        "safetensors",
        path);
  }
  if (looks_like_safetensors(bytes) || path.ends_with(".safetensors")) return ModelFormat::kSafetensors;
  throw bad_data(
      "'{}' is no model that is known: TorchScript, torch.save state dict, safetensors, GGUF, or a Hugging "
      "Face folder",
      path);
}

CheckpointFiles read_checkpoint(const std::string& path, ModelFormat format) {
  if (format == ModelFormat::kHuggingFace) return read_folder(path);
  if (format == ModelFormat::kGguf)
    throw bad_data(
        "'{}' is a GGUF file, which is only evaluated and inspected yet; convert it to a Hugging Face folder",
        path);
  CheckpointFiles checkpoint;
  checkpoint.format = format;
  if (format == ModelFormat::kSafetensors) {
    add_safetensors(checkpoint, path);
    return checkpoint;
  }
  auto file = std::make_shared<const MappedFile>(path);
  StateDict dict = format == ModelFormat::kStateDict
                       ? read_state_dict_zip(read_zip(file->bytes(), path), path)
                       : read_legacy_state_dict(file->bytes(), path);
  checkpoint.files.push_back(std::move(file));
  checkpoint.arrays = std::move(dict.arrays);
  checkpoint.file_of.assign(checkpoint.arrays.size(), 0);
  checkpoint.notes = std::move(dict.notes);
  return checkpoint;
}

}  // namespace mcompress
