#pragma once

#include <functional>

#include <ATen/core/Tensor.h>

#include "mcompress/model/layer.h"

namespace mcompress {

// The Hessian of what a layer of a program is given, as rows that its weight [rows, channels * places of the
// kernel] is multiplied with: for a convolution, what lies below the kernel. `also` gets these rows too,
// float32, some at a time. Throws Error(65) for inputs that the weight does not take, or that are not finite.
at::Tensor hessian_of(
    const Layer& layer, const at::Tensor& input,
    const std::function<void(const at::Tensor& rows)>& also = [](const at::Tensor&) {});

}  // namespace mcompress
