#include "state_file.h"

#include <algorithm>
#include <array>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/base/output.h"
#include "mcompress/base/sha256.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/model/checkpoint.h"

namespace mcompress {

namespace {

constexpr const char* kHash = "sha256";

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kLong: return DType::kI64;
    case at::kBool: return DType::kBool;
    case at::kByte: return DType::kU8;
    case at::kHalf: return DType::kF16;
    default: return DType::kF32;
  }
}

// Of everything in a state but the hash itself, by name.
std::string hash_of(const RunState& state) {
  std::string hashes;
  for (const auto& [name, tensor] : state.tensors) {
    const at::Tensor flat = tensor.detach().contiguous();
    hashes += fmt::format("{} {}\n", name, sha256_of(bytes_of(flat)));
  }
  for (const auto& [name, text] : state.texts) {
    if (name != kHash) hashes += fmt::format("{} {}\n", name, text);
  }
  return sha256_of(std::as_bytes(std::span(hashes)));
}

}  // namespace

void write_state(const RunState& state, const std::string& path) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, tensor] : state.tensors) {
    entries.push_back({name, dtype_of(tensor), {tensor.numel()}});
  }
  std::map<std::string, std::string> texts = state.texts;
  texts[kHash] = hash_of(state);
  const SafetensorsWriter writer(std::move(entries), std::move(texts));
  OutputFile file(path, true);
  writer.write_header(file);
  for (const auto& [name, tensor] : state.tensors) {
    const at::Tensor flat = tensor.detach().contiguous();
    writer.write(file, name, 0, bytes_of(flat));
  }
  file.commit();
}

RunState read_state(const std::string& path) {
  const MappedFile file(path);
  const SafetensorsFile content = read_safetensors(file.bytes(), path);
  RunState state;
  state.texts = content.metadata;
  for (const Array& array : content.arrays) {
    constexpr std::array kKnown = {DType::kF32, DType::kI64, DType::kBool, DType::kU8, DType::kF16};
    if (std::find(kKnown.begin(), kKnown.end(), array.dtype) == kKnown.end() || array.shape.size() != 1)
      throw bad_data("'{}' is no checkpoint of a run: '{}' is no flat array", path, array.name);
    state.tensors[array.name] = rows_of(array, 0, array.shape[0]).clone();
  }
  state.texts.erase("format");  // the writer's own
  const auto hash = state.texts.find(kHash);
  if (hash == state.texts.end())
    throw bad_data("'{}' is no checkpoint of a run, or one of an older version: it has no hash", path);
  if (hash->second != hash_of(state)) {
    throw bad_data(
        "checkpoint '{}' is damaged: its hash is not that of its content; start anew with --force and "
        "without --resume",
        path);
  }
  return state;
}

}  // namespace mcompress
