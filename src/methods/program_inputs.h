#pragma once

#include <ATen/core/Tensor.h>

#include "mcompress/model/layer.h"

namespace mcompress {

// What a layer of a program is given, as rows that its weight [rows, channels * places of the kernel] is
// multiplied with: for a convolution, what lies below the kernel.
struct LayerStatistics {
  at::Tensor hessian;  // as HessianSum::mean()
  at::Tensor mean;     // of |x|, float32 [channels * places]
};
// Throws Error(65) for inputs that the weight does not take, or that are not finite.
LayerStatistics inputs_of(const Layer& layer, const at::Tensor& input);

}  // namespace mcompress
