#include "mcompress/methods/dynamic.h"

#include <algorithm>
#include <cmath>
#include <functional>

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

at::Tensor as_rows(const at::Tensor& weight) { return weight.detach().flatten(1); }

// Calls `use` with pieces of rows, so that temporaries stay small: [begin, end) of `rows`.
void for_row_pieces(const at::Tensor& rows, const std::function<void(int64_t begin, int64_t end)>& use) {
  constexpr int64_t kPieceElements = int64_t{1} << 16;
  const int64_t piece = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, rows.size(1)));
  for (int64_t begin = 0; begin < rows.size(0); begin += piece)
    use(begin, std::min(begin + piece, rows.size(0)));
}

at::Tensor all_row_scales(const at::Tensor& rows, Int8Grid grid) {
  at::Tensor scale = at::empty({rows.size(0)}, at::kFloat);
  for_row_pieces(rows, [&](int64_t begin, int64_t end) {
    scale.slice(0, begin, end).copy_(row_scales(rows.slice(0, begin, end).to(at::kFloat), grid));
  });
  return scale;
}

Int8Channel round_to_codes(const at::Tensor& weight, at::Tensor scale) {
  const at::Tensor rows = as_rows(weight);
  scale = at::where(scale > 0, scale, at::ones_like(scale));
  at::Tensor codes = at::empty(rows.sizes(), at::kChar);
  for_row_pieces(rows, [&](int64_t begin, int64_t end) {
    const at::Tensor steps =
        rows.slice(0, begin, end).to(at::kFloat) / scale.slice(0, begin, end).unsqueeze(1);
    codes.slice(0, begin, end).copy_(steps.round().clamp(-127, 127));
  });
  return {codes.view(weight.sizes()), scale};
}

}  // namespace

Int8Channel quantize_rows(const at::Tensor& weight, Int8Grid grid) {
  return round_to_codes(weight, all_row_scales(as_rows(weight), grid));
}

Int8Channel quantize_tensor(const at::Tensor& weight, Int8Grid grid) {
  const at::Tensor scale = all_row_scales(as_rows(weight), grid);
  return round_to_codes(weight, scale.max().expand_as(scale).contiguous());
}

CompressedWeight compress_weight(const at::Tensor& weight, bool is_linear, const DynamicOptions& options) {
  if (options.dtype == WeightType::kFloat16) return Dense{weight.detach().to(at::kHalf)};
  if (options.dtype == WeightType::kBFloat16) return Dense{weight.detach().to(at::kBFloat16)};
  const bool multiplied = is_linear && options.runtime == Runtime::kInt8;
  const Int8Grid grid = multiplied ? Int8Grid::kPair : Int8Grid::kRow;
  return options.per_tensor ? quantize_tensor(weight, grid) : quantize_rows(weight, grid);
}

QuantizationError error_of(const at::Tensor& weight, const CompressedWeight& compressed) {
  const at::Tensor rows = as_rows(weight);
  double signal = 0, noise = 0, largest = 0;
  for_row_pieces(rows, [&](int64_t begin, int64_t end) {
    const at::Tensor exact = rows.slice(0, begin, end).to(at::kFloat);
    const at::Tensor error = dequantize_rows(compressed, begin, end) - exact;
    signal += exact.square().sum(at::kDouble).item<double>();
    noise += error.square().sum(at::kDouble).item<double>();
    largest = std::max(largest, error.abs().max().item<double>());
  });
  return {10.0 * std::log10(signal / noise), largest};
}

}  // namespace mcompress
