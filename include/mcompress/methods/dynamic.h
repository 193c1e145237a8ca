#pragma once

#include "mcompress/model/compressed_weight.h"

namespace mcompress {

enum class WeightType { kInt8, kFloat16, kBFloat16 };

struct DynamicOptions {
  WeightType dtype = WeightType::kInt8;
  bool per_tensor = false;
  Runtime runtime = Runtime::kInt8;
};

// Most inputs of a linear layer whose int8 products sum up in 32 bits for any activations: pairs of
// codes reach 128 and activations 255.
inline constexpr int64_t kMaxInt8Inputs = 131'584;

// The weight of a linear layer or embedding as `options` ask for it. The grid is kPair where int8
// kernels will multiply it.
CompressedWeight compress_weight(const at::Tensor& weight, bool is_linear, const DynamicOptions& options);

}  // namespace mcompress
