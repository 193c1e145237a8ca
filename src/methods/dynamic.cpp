#include "mcompress/methods/dynamic.h"

#include <cmath>

#include <ATen/ATen.h>

namespace mcompress {

namespace {

// The smallest scale of each row, [rows], that keeps its codes on the grid.
at::Tensor row_scales(const at::Tensor& rows, Int8Grid grid) {
  constexpr double kMaxCode = 127.0, kMaxPair = 127.5;  // two roundings add at most 1 to the pair
  const at::Tensor magnitude = rows.abs();
  at::Tensor scale = magnitude.amax(1) / kMaxCode;
  const int64_t even = rows.size(1) / 2 * 2;
  if (grid == Int8Grid::kPair && even > 0) {
    const at::Tensor pairs = magnitude.narrow(1, 0, even).unflatten(1, {even / 2, 2}).sum(2);
    scale = at::maximum(scale, pairs.amax(1) / kMaxPair);
  }
  return scale;
}

Int8Channel round_to_codes(const at::Tensor& weight, const at::Tensor& rows, at::Tensor scale) {
  scale = at::where(scale > 0, scale, at::ones_like(scale));
  const at::Tensor codes = (rows / scale.unsqueeze(1)).round().clamp(-127, 127).to(at::kChar);
  return {codes.view(weight.sizes()), scale};
}

at::Tensor as_rows(const at::Tensor& weight) { return weight.detach().to(at::kFloat).flatten(1); }

}  // namespace

Int8Channel quantize_rows(const at::Tensor& weight, Int8Grid grid) {
  const at::Tensor rows = as_rows(weight);
  return round_to_codes(weight, rows, row_scales(rows, grid));
}

Int8Channel quantize_tensor(const at::Tensor& weight, Int8Grid grid) {
  const at::Tensor rows = as_rows(weight);
  const at::Tensor scale = row_scales(rows, grid);
  return round_to_codes(weight, rows, scale.max().expand_as(scale).contiguous());
}

CompressedWeight compress_weight(const at::Tensor& weight, bool is_linear, const DynamicOptions& options) {
  if (options.dtype == WeightType::kFloat16) return Dense{weight.detach().to(at::kHalf)};
  if (options.dtype == WeightType::kBFloat16) return Dense{weight.detach().to(at::kBFloat16)};
  const bool multiplied = is_linear && options.runtime == Runtime::kInt8;
  const Int8Grid grid = multiplied ? Int8Grid::kPair : Int8Grid::kRow;
  return options.per_tensor ? quantize_tensor(weight, grid) : quantize_rows(weight, grid);
}

QuantizationError error_of(const at::Tensor& weight, const CompressedWeight& compressed) {
  const at::Tensor exact = weight.detach().to(at::kFloat);
  const at::Tensor error = dequantize(compressed) - exact;
  const double signal = exact.square().sum(at::kDouble).item<double>();
  const double noise = error.square().sum(at::kDouble).item<double>();
  return {10.0 * std::log10(signal / noise), error.abs().max().item<double>()};
}

}  // namespace mcompress
