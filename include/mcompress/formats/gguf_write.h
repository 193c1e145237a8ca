#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "mcompress/base/output.h"
#include "mcompress/formats/gguf.h"

namespace mcompress {

// Rounds whole blocks of values to a type as ggml does (ggml-quants.c, the reference functions): F32, F16,
// BF16, Q4_0, Q4_1, Q8_0, Q4_K and Q6_K. `blocks` has room for count / block_of(type).values blocks.
// `scales`, of float16, are those of the blocks of Q4_0 or Q8_0 in place of what the values ask for.
void quantize_gguf(GgufType type, const float* values, int64_t count, std::byte* blocks,
                   const float* scales = nullptr);

// Whether quantize_gguf() knows the type.
bool is_written(GgufType type);

// A value of the metadata that is written, of the width that readers expect of its key.
using GgufField = std::variant<uint32_t, int32_t, float, bool, std::string, std::vector<int32_t>,
                               std::vector<float>, std::vector<std::string>>;

// Writes a GGUF file of version 3: metadata and the tensors' places first, then their data in that order,
// each from the next multiple of 32 bytes on.
class GgufWriter {
 public:
  struct Entry {
    std::string name;  // at most 63 bytes
    GgufType type = GgufType::kF32;
    std::vector<int64_t> shape;  // outermost dimension first
  };
  GgufWriter(const std::vector<std::pair<std::string, GgufField>>& metadata, std::vector<Entry> entries);

  uint64_t file_bytes() const;
  void write_header(OutputFile& file) const;
  // Part of a tensor, `offset` bytes from its begin.
  void write(OutputFile& file, size_t entry, uint64_t offset, Bytes bytes) const;

 private:
  std::vector<Entry> entries_;
  std::vector<uint64_t> places_;  // of each from the begin of the file, then the file's end
  std::string header_;
};

}  // namespace mcompress
