#include "mcompress/methods/dynamic.h"

#include <cmath>

#include <ATen/ATen.h>

namespace mcompress {

Int8Channel quantize_rows(const at::Tensor& weight, Int8Grid grid) {
  constexpr double kMaxCode = 127.0, kMaxPair = 127.5;  // two roundings add at most 1 to the pair
  const at::Tensor rows = weight.detach().to(at::kFloat).flatten(1);
  const at::Tensor magnitude = rows.abs();
  at::Tensor scale = magnitude.amax(1) / kMaxCode;
  const int64_t even = rows.size(1) / 2 * 2;
  if (grid == Int8Grid::kPair && even > 0) {
    const at::Tensor pairs = magnitude.narrow(1, 0, even).unflatten(1, {even / 2, 2}).sum(2);
    scale = at::maximum(scale, pairs.amax(1) / kMaxPair);
  }
  scale = at::where(scale > 0, scale, at::ones_like(scale));
  const at::Tensor codes = (rows / scale.unsqueeze(1)).round().clamp(-kMaxCode, kMaxCode).to(at::kChar);
  return {codes.view(weight.sizes()), scale};
}

QuantizationError error_of(const at::Tensor& weight, const Int8Channel& quantized) {
  const at::Tensor rows = weight.detach().to(at::kFloat).flatten(1);
  const at::Tensor error = quantized.codes.flatten(1).to(at::kFloat) * quantized.scale.unsqueeze(1) - rows;
  const double signal = rows.square().sum(at::kDouble).item<double>();
  const double noise = error.square().sum(at::kDouble).item<double>();
  return {10.0 * std::log10(signal / noise), error.abs().max().item<double>()};
}

}  // namespace mcompress
