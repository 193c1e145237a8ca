#pragma once

#include <ATen/core/Tensor.h>

#include "mcompress/model/compressed_weight.h"

namespace mcompress {

// Lowers the loss dW H dW^T of a rounded weight by coordinate descent, group after group: the scale that is
// best for the codes as they are (a step that no scale of float16 improves is left), then each code for all
// others as they are (QuantEase, arXiv:2309.01885). `exact` and `hessian` are float64 [rows, channels] and
// [channels, channels]. Returns the loss. The same bytes for any number of threads.
double descend(IntGroup& weight, const at::Tensor& exact, const at::Tensor& hessian, int sweeps);

}  // namespace mcompress
