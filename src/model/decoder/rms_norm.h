#pragma once

#include <ATen/core/Tensor.h>

namespace mcompress {

// RMSNorm (arXiv:1910.07467) over the last dimension of x, float32 or bfloat16, as transformers computes it:
// in float32, and where the weight is of x's type, rounded to that before it is multiplied with it.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

}  // namespace mcompress
