#include "mcompress/methods/group_grid.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"

namespace mcompress {

at::Tensor groups_in_order(int64_t channels, int64_t group_size) {
  if (group_size == 0 || group_size < -1)
    throw error(Exit::kUsage, "a group of {} input channels is none; pass 1 or more, or -1 for all",
                group_size);
  return at::arange(channels).div(group_size < 0 ? std::max<int64_t>(1, channels) : group_size, "floor");
}

namespace {

struct Range {
  double low = 0, high = 0;  // with 0 inside
};

Range range_of(const double* weights, int64_t count, bool symmetric) {
  Range range;
  for (int64_t i = 0; i < count; ++i) {
    range.low = std::min(range.low, weights[i]);
    range.high = std::max(range.high, weights[i]);
  }
  if (symmetric) {
    range.high = std::max(range.high, -range.low);
    range.low = -range.high;
  }
  return range;
}

struct Scale {
  double scale = 1, zero = 0;
};

// Weighted squared error of rounding with it.
double error_of(const double* weights, const double* importance, int64_t count, const Scale& tried,
                double largest) {
  double error = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double code =
        std::min(std::max(std::nearbyint(weights[i] / tried.scale) + tried.zero, 0.0), largest);
    const double off = tried.scale * (code - tried.zero) - weights[i];
    error += off * off * importance[i];
  }
  return error;
}

Scale scale_of(const double* weights, const double* importance, int64_t count, const GroupGrid& grid) {
  const auto largest = static_cast<double>((1 << grid.bits) - 1);
  const Range range = range_of(weights, count, grid.symmetric);
  const auto narrowed = [&](double part) {
    // A group of zeros has any scale.
    const double scale = range.high == range.low ? 1 : (range.high - range.low) * part / largest;
    return Scale{scale, grid.symmetric ? 1 << (grid.bits - 1) : std::nearbyint(-range.low * part / scale)};
  };
  Scale best = narrowed(1);
  if (!grid.search) return best;
  double least = error_of(weights, importance, count, best, largest);
  constexpr int kSteps = 35;  // of a hundredth
  for (int i = 1; i <= kSteps && least > 0; ++i) {
    const Scale tried = narrowed(1 - 0.01 * i);
    const double error = error_of(weights, importance, count, tried, largest);
    if (error >= least) continue;
    least = error;
    best = tried;
  }
  return best;
}

}  // namespace

GroupScale group_scale(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& importance) {
  const at::Tensor values = weight.contiguous();
  const at::Tensor costs =
      importance.defined() ? importance.contiguous() : at::ones({weight.size(1)}, at::kDouble);
  const int64_t rows = values.size(0), count = values.size(1);
  GroupScale result = {at::empty({rows}, at::kDouble), at::empty({rows}, at::kDouble)};
  constexpr int64_t kGrain = 16;
  at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Scale found = scale_of(values.const_data_ptr<double>() + row * count,
                                   costs.const_data_ptr<double>(), count, grid);
      result.scale.data_ptr<double>()[row] = found.scale;
      result.zero.data_ptr<double>()[row] = found.zero;
    }
  });
  return result;
}

GroupCodes round_to_groups(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& importance) {
  const at::Tensor exact = weight.to(at::kDouble), groups = groups_in_order(weight.size(1), grid.group_size);
  const int64_t channels = weight.size(1), size = grid.group_size < 0 ? channels : grid.group_size;
  std::vector<at::Tensor> scales, zeros;
  for (int64_t begin = 0; begin < channels; begin += size) {
    const int64_t end = std::min(begin + size, channels);
    // The scale is stored in float32, and the codes are those of what is stored.
    const GroupScale found = group_scale(exact.slice(1, begin, end), grid,
                                         importance.defined() ? importance.slice(0, begin, end) : importance);
    scales.push_back(found.scale.to(at::kFloat));
    zeros.push_back(found.zero);
  }
  const at::Tensor scale = at::stack(scales, 1), zero = at::stack(zeros, 1);
  const at::Tensor codes = (exact / scale.to(at::kDouble).index_select(1, groups))
                               .round_()
                               .add_(zero.index_select(1, groups))
                               .clamp_(0, (1 << grid.bits) - 1);
  return {codes.to(at::kByte), scale, zero.to(at::kByte), groups};
}

at::Tensor dequantize(const GroupCodes& codes) {
  const at::Tensor zero = codes.zero.to(at::kFloat).index_select(1, codes.groups);
  return (codes.codes.to(at::kFloat) - zero) * codes.scale.index_select(1, codes.groups);
}

}  // namespace mcompress
