#include "mcompress/methods/group_grid.h"

#include <algorithm>
#include <array>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
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

constexpr int64_t kLanes = 8;  // of sums and ranges, which no processor can add up at once otherwise

MCOMPRESS_WIDE Range range_of(const double* weights, int64_t count, bool symmetric) {
  std::array<double, kLanes> low{}, high{};
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double weight = weights[i + lane];
      low[lane] = weight < low[lane] ? weight : low[lane];
      high[lane] = weight > high[lane] ? weight : high[lane];
    }
  }
  Range range;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    range.low = std::min(range.low, low[lane]);
    range.high = std::max(range.high, high[lane]);
  }
  for (int64_t i = whole; i < count; ++i) {
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

  // The last scale with the other sign.
  void add_negative() {
    scale[count] = -scale[count - 1];
    inverse[count] = -inverse[count - 1];
    zero[count] = zero[count - 1];
    ++count;
  }
};

// Adds to the error of each candidate the weighted squared error of rounding with it, which tells them apart
// though its codes are those of a rounded reciprocal. One weight after the other and all candidates at once,
// which the compiler turns into wide registers.
MCOMPRESS_WIDE void add_errors(const double* weights, const double* costs, int64_t count, float largest,
                               Candidates& tried) {
  std::array<float, kMostTried> lowest{}, highest{};  // codes less the zero point
  for (size_t c = 0; c < kMostTried; ++c) {
    lowest[c] = -tried.zero[c];
    highest[c] = largest - tried.zero[c];
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto weight = static_cast<float>(weights[i]), cost = static_cast<float>(costs[i]);
    for (size_t c = 0; c < kMostTried; ++c) {
      const float steps = std::min(std::max(rounded(weight * tried.inverse[c]), lowest[c]), highest[c]);
      const float off = tried.scale[c] * steps - weight;
      tried.error[c] += off * off * cost;
    }
  }
}

MCOMPRESS_WIDE void encode(const double* weights, int64_t count, double scale, double zero, double largest,
                           uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i)
    codes[i] = static_cast<uint8_t>(std::min(std::max(0.0, rounded(weights[i] / scale) + zero), largest));
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
    tried.add_negative();
  }
}

// What the errors of weights count where nothing is known of their inputs: the squares of the weights, so
// that a large one is not clipped for the sake of many small ones, and twice their mean.
MCOMPRESS_WIDE void set_costs_by_size(const double* weights, int64_t count, double* costs) {
  std::array<double, kLanes> sums{};
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < count; ++i) costs[i] = weights[i] * weights[i];
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += costs[i + lane];
  }
  for (int64_t i = whole; i < count; ++i) sums[0] += costs[i];
  double sum = 0;
  for (const double part : sums) sum += part;
  const double mean = sum / static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) costs[i] = mean > 0 ? costs[i] / mean + 2 : 1;
}

// What errors count of channels in groups of that size: only their ratios matter, and the largest of a group
// must fit float32. Undefined where nothing is known of their inputs.
at::Tensor costs_of(const at::Tensor& importance, int64_t group_size) {
  if (!importance.defined()) return importance;
  std::vector<at::Tensor> costs;
  for (const at::Tensor& group : importance.split(group_size)) costs.push_back(group / group.max());
  return at::cat(costs).contiguous();
}

double largest_code(const GroupGrid& grid) { return (1 << grid.bits) - 1; }

// Chooses scales and zero points of groups, one row at a time.
class ScaleChoice {
 public:
  ScaleChoice(const GroupGrid& grid, const at::Tensor& costs) : grid_(grid), costs_(costs) {}

  // `first`: the first of the group's channels.
  void choose(const double* weights, int64_t first, int64_t count, double& scale, double& zero) {
    const Range range = range_of(weights, count, grid_.symmetric);
    const double largest = largest_code(grid_);
    Candidates tried;
    if (range.high == range.low) {
      tried.add(1, grid_.symmetric ? 1 << (grid_.bits - 1) : 0);  // a group of zeros has any scale
    } else {
      grid_.symmetric ? add_symmetric(range, grid_, largest, tried)
                      : add_asymmetric(range, grid_, largest, tried);
    }
    if (tried.count > 1)
      add_errors(weights, costs(weights, first, count), count, static_cast<float>(largest), tried);
    // Of equal ones the first.
    const auto* best = std::min_element(tried.error.begin(), tried.error.begin() + tried.count);
    scale = tried.scale[static_cast<size_t>(best - tried.error.begin())];
    zero = tried.zero[static_cast<size_t>(best - tried.error.begin())];
  }

 private:
  const double* costs(const double* weights, int64_t first, int64_t count) {
    if (costs_.defined()) return costs_.const_data_ptr<double>() + first;
    by_size_.resize(static_cast<size_t>(count));
    set_costs_by_size(weights, count, by_size_.data());
    return by_size_.data();
  }

  const GroupGrid& grid_;
  const at::Tensor& costs_;
  std::vector<double> by_size_;
};

void check_scales(const at::Tensor& scales, const at::Tensor& weight) {
  if (!scales.isfinite().all().item<bool>())
    throw bad_data("weights up to {:.3g} need a scale beyond float16", weight.abs().max().item<double>());
}

constexpr int64_t kGrain = 16;

}  // namespace

GroupScale group_scale(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& importance) {
  const at::Tensor values = weight.contiguous();
  const int64_t rows = values.size(0), count = values.size(1);
  const at::Tensor costs = costs_of(importance, count);
  GroupScale result = {at::empty({rows}, at::kDouble), at::empty({rows}, at::kDouble)};
  at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    ScaleChoice choice(grid, costs);
    for (int64_t row = begin; row < end; ++row)
      choice.choose(values.const_data_ptr<double>() + row * count, 0, count,
                    result.scale.data_ptr<double>()[row], result.zero.data_ptr<double>()[row]);
  });
  check_scales(result.scale, values);
  return result;
}

IntGroup round_to_groups(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& importance) {
  const at::Tensor values = weight.contiguous(), groups = groups_in_order(weight.size(1), grid.group_size);
  const int64_t rows = values.size(0), channels = values.size(1),
                size = grid.group_size < 0 ? std::max<int64_t>(1, channels) : grid.group_size,
                count = (channels + size - 1) / size;
  const at::Tensor costs = costs_of(importance, size), codes = at::empty({rows, channels}, at::kByte),
                   scale = at::empty({rows, count}, at::kDouble), zero = at::empty_like(scale);
  // A row at a time, since more of it in float64 would not stay in a cache.
  const auto round_rows = [&](const auto* weights, int64_t begin, int64_t end) {
    ScaleChoice choice(grid, costs);
    std::vector<double> exact(static_cast<size_t>(channels));
    for (int64_t row = begin; row < end; ++row) {
      std::copy_n(weights + row * channels, channels, exact.begin());
      for (int64_t group = 0; group < count; ++group) {
        const int64_t first = group * size, length = std::min(size, channels - first);
        double& found = scale.data_ptr<double>()[row * count + group];
        double& middle = zero.data_ptr<double>()[row * count + group];
        choice.choose(exact.data() + first, first, length, found, middle);
        encode(exact.data() + first, length, found, middle, largest_code(grid),
               codes.data_ptr<uint8_t>() + row * channels + first);
      }
    }
  };
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "round_to_groups", [&] {
    at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
      round_rows(values.const_data_ptr<scalar_t>(), begin, end);
    });
  });
  check_scales(scale, values);
  return {grid.bits, codes, scale.to(at::kHalf), zero.to(at::kByte), groups};
}

}  // namespace mcompress
