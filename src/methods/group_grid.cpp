#include "mcompress/methods/group_grid.h"

#include <algorithm>
#include <array>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include "mcompress/base/error.h"
#include "mcompress/base/wide.h"
#include "mcompress/model/pieces.h"

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

// Scales and zero points to choose from, in float32, which tells them apart.
constexpr size_t kMostTried = 64;  // whole registers of any width
struct Candidates {
  std::array<float, kMostTried> scale{}, inverse{}, zero{}, error{};
  size_t count = 0;

  // A scale that no float16 can hold becomes infinite, one that is too small for it the smallest.
  void add(double exact, double zero_point) {
    constexpr float kLeast = 0x1p-24F;  // of float16 above 0
    const float held = static_cast<c10::Half>(static_cast<float>(exact));
    scale[count] = held == 0 ? kLeast : held;
    inverse[count] = 1 / scale[count];
    zero[count++] = static_cast<float>(zero_point);
  }
};

// Adds to the error of each candidate the weighted squared error of rounding with it, which tells them apart
// though its codes are those of a rounded reciprocal. One weight after the other and all candidates at once,
// which the compiler turns into wide registers.
MCOMPRESS_WIDE void add_errors(const double* weights, const double* importance, int64_t count, float largest,
                               Candidates& tried) {
  for (int64_t i = 0; i < count; ++i) {
    const auto weight = static_cast<float>(weights[i]), cost = static_cast<float>(importance[i]);
    for (size_t c = 0; c < kMostTried; ++c) {
      const float code =
          std::min(std::max(rounded(weight * tried.inverse[c]) + tried.zero[c], 0.0F), largest);
      const float off = tried.scale[c] * (code - tried.zero[c]) - weight;
      tried.error[c] += off * off * cost;
    }
  }
}

// Ranges narrowed step by step, each with the zero point of its low end and those beside
// it.
void add_asymmetric(const Range& range, const GroupGrid& grid, double largest, Candidates& tried) {
  const int steps = grid.search ? 18 : 1;
  for (int i = 0; i < steps; ++i) {
    const double part = 1 - 0.02 * i, exact = (range.high - range.low) * part / largest;
    tried.add(exact, 0);
    const double zero = std::min(largest, rounded(-range.low * part / tried.scale[tried.count - 1]));
    tried.zero[tried.count - 1] = static_cast<float>(zero);
    if (!grid.search) continue;
    tried.add(exact, std::max(0.0, zero - 1));
    tried.add(exact, std::min(largest, zero + 1));
  }
}

// GPTQ's own scale, then those around the one whose lowest code is the largest weight. There is one code more
// on one side, which is that of positive weights where the scale is negative.
void add_symmetric(const Range& range, const GroupGrid& grid, double largest, Candidates& tried) {
  const double middle = 1 << (grid.bits - 1);
  tried.add((range.high - range.low) / largest, middle);
  if (!grid.search) return;
  constexpr int kSteps = 25;
  for (int i = 0; i < kSteps; ++i) {
    const double exact = range.high / middle * (1.14 - 0.02 * i);
    tried.add(exact, middle);
    tried.add(-exact, middle);
  }
}

// What the errors of weights count where nothing is known of their inputs: the squares of the weights, so
// that a large one is not clipped for the sake of many small ones, and twice their mean.
std::vector<double> costs_by_size(const double* weights, int64_t count) {
  std::vector<double> costs(weights, weights + count);
  double sum = 0;
  for (double& cost : costs) sum += cost *= cost;
  const double mean = sum / static_cast<double>(count);
  for (double& cost : costs) cost = mean > 0 ? cost / mean + 2 : 1;
  return costs;
}

// Sets the scale and zero point of one row.
void choose_scale(const double* weights, const double* importance, int64_t count, const GroupGrid& grid,
                  double& scale, double& zero) {
  const auto largest = static_cast<double>((1 << grid.bits) - 1);
  const Range range = range_of(weights, count, grid.symmetric);
  Candidates tried;
  if (range.high == range.low) {
    tried.add(1, grid.symmetric ? 1 << (grid.bits - 1) : 0);  // a group of zeros has any scale
  } else {
    grid.symmetric ? add_symmetric(range, grid, largest, tried) : add_asymmetric(range, grid, largest, tried);
  }
  if (tried.count > 1) add_errors(weights, importance, count, static_cast<float>(largest), tried);
  // Of equal ones the first.
  const auto* best = std::min_element(tried.error.begin(), tried.error.begin() + tried.count);
  scale = tried.scale[static_cast<size_t>(best - tried.error.begin())];
  zero = tried.zero[static_cast<size_t>(best - tried.error.begin())];
}

}  // namespace

GroupScale group_scale(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& importance) {
  const at::Tensor values = weight.contiguous();
  // Only their ratios matter, and the largest must fit float32.
  const at::Tensor costs = importance.defined() ? importance / importance.max() : at::Tensor();
  const int64_t rows = values.size(0), count = values.size(1);
  GroupScale result = {at::empty({rows}, at::kDouble), at::empty({rows}, at::kDouble)};
  constexpr int64_t kGrain = 16;
  at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double* weights = values.const_data_ptr<double>() + row * count;
      std::vector<double> by_size;
      if (grid.search && !costs.defined()) by_size = costs_by_size(weights, count);
      choose_scale(weights, costs.defined() ? costs.const_data_ptr<double>() : by_size.data(), count, grid,
                   result.scale.data_ptr<double>()[row], result.zero.data_ptr<double>()[row]);
    }
  });
  if (!result.scale.isfinite().all().item<bool>())
    throw bad_data("weights up to {:.3g} need a scale beyond float16", values.abs().max().item<double>());
  return result;
}

IntGroup round_to_groups(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& importance) {
  const at::Tensor exact = weight.to(at::kDouble), groups = groups_in_order(weight.size(1), grid.group_size);
  const int64_t channels = weight.size(1), size = grid.group_size < 0 ? channels : grid.group_size;
  std::vector<at::Tensor> scales, zeros;
  for (int64_t begin = 0; begin < channels; begin += size) {
    const int64_t end = std::min(begin + size, channels);
    const GroupScale found = group_scale(exact.slice(1, begin, end), grid,
                                         importance.defined() ? importance.slice(0, begin, end) : importance);
    scales.push_back(found.scale);
    zeros.push_back(found.zero);
  }
  const at::Tensor scale = at::stack(scales, 1), zero = at::stack(zeros, 1);
  const at::Tensor codes = (exact / take_columns(scale, groups))
                               .round_()
                               .add_(take_columns(zero, groups))
                               .clamp_(0, (1 << grid.bits) - 1);
  return {grid.bits, codes.to(at::kByte), scale.to(at::kHalf), zero.to(at::kByte), groups};
}

}  // namespace mcompress
