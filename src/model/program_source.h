#pragma once

#include <string>

#include <ATen/core/Tensor.h>

#include "mcompress/model/layer.h"

namespace mcompress {

// Pieces of TorchScript source that replaced layers share.

// Eight codes of b bits, from -2^(b - 1) on, lie in b bytes, the first code in the lowest bits, each raised
// by 2^(b - 1).
at::Tensor pack_codes(const at::Tensor& codes, int bits);
// Makes self.weight, int8, from what pack_codes() made, in self.codes, and self.shape.
std::string unpack_source(int bits);

// How a convolution slides, as its operators take it.
std::string slide(const Convolution& conv);
// A line that pads x as the layer does before it, or nothing.
std::string pad_source(const Layer& layer);
// The layer applied to x in float32, with `weight` an expression.
std::string float_call(const Layer& layer, const std::string& weight);
const char* conv_name(const Layer& layer);  // "conv1d" or "conv2d"

}  // namespace mcompress
