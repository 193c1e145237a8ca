#pragma once

#include "mcompress/model/layer.h"

namespace mcompress {

// apply_layer() with gradients that do not depend on the number of threads: LibTorch adds up a weight's
// gradient over the batch in as many parts as there are threads; here the layer's size decides, up to eight.
at::Tensor apply_layer_for_training(const Layer& layer, const at::Tensor& input, const at::Tensor& weight,
                                    const at::Tensor& bias);

// x ~ scale * (code - zero_point), codes from low to high, with the gradients of LSQ (arXiv:1902.08153) for x
// and `scale`, which is [1], or [rows] for the first dimension of x. That of the scale is multiplied by 1 /
// sqrt(N * high), N being the elements that share it.
at::Tensor lsq_round(const at::Tensor& x, const at::Tensor& scale, int64_t zero_point, int64_t low,
                     int64_t high);

}  // namespace mcompress
