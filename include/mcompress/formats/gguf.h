#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

// Element types of GGUF that are read (ggml.h); the others are named in a refusal.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30
};
const char* name_of(GgufType type);  // "Q4_K"

// Numbers that are stored together, and the bytes they take.
struct GgufBlock {
  int64_t values;
  uint64_t bytes;
};
GgufBlock block_of(GgufType type);

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  std::vector<int64_t> shape;  // outermost dimension first, as in PyTorch
  Bytes bytes;
};

// A value of the metadata; whole numbers and truth values are int64_t.
using GgufValue = std::variant<int64_t, double, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<std::string>>;

struct GgufFile {
  std::map<std::string, GgufValue> metadata;
  std::vector<GgufTensor> tensors;
};

// nullptr where there is none, or of another type.
template <typename Value>
const Value* find_value(const GgufFile& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  return found == file.metadata.end() ? nullptr : std::get_if<Value>(&found->second);
}
const GgufTensor* find_tensor(const GgufFile& file, std::string_view name);

bool looks_like_gguf(Bytes bytes);

// Reads a GGUF file of version 2 or 3 (ggml/docs/gguf.md). Checked before they are used: each size against
// the file, offsets against the order of the tensors, names for being unique. Throws Error(65) naming what is
// wrong.
GgufFile read_gguf(Bytes bytes, const std::string& path);

// The values of whole blocks as float32: `values` has block_of(type).values for each block_of(type).bytes of
// `blocks`.
void dequantize_gguf(GgufType type, Bytes blocks, float* values);

}  // namespace mcompress
