#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

// Element types that the formats know, named as safetensors names them.
enum class DType {
  kBool,
  kU8,
  kI8,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kC64,  // complex, of two float32
  kC128
};

uint64_t size_of(DType dtype);     // bytes of one element
const char* name_of(DType dtype);  // "F32"
bool is_floating(DType dtype);     // real numbers of any width
std::optional<DType> dtype_named(std::string_view name);

// One named array inside a mapped file. Strides are in elements; empty means contiguous.
struct Array {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape, strides;
  Bytes bytes;  // from the first element to the end of the last; 8-byte alignment is not promised
};

}  // namespace mcompress
