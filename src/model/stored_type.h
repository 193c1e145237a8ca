#pragma once

#include "mcompress/model/checkpoint.h"

namespace mcompress {

inline bool has_scale(StoredType type) {
  return type == StoredType::kInt8Rows || type == StoredType::kInt8Tensor;
}

inline DType stored_dtype(StoredType type) {
  if (type == StoredType::kFloat16) return DType::kF16;
  return type == StoredType::kBFloat16 ? DType::kBF16 : DType::kI8;
}

}  // namespace mcompress
