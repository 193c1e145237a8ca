#include "mcompress/methods/awq.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include "mcompress/base/error.h"
#include "mcompress/base/wide.h"

namespace mcompress {

namespace {

constexpr float kLeastScale = 0x1p-24F;  // of float16 above 0

int64_t size_of_group(const GroupGrid& grid, int64_t channels) {
  return grid.group_size < 0 ? channels : std::min(grid.group_size, channels);
}

// Sets the error of weights of one group that are rounded to nearest times `scale`, and scaled back.
MCOMPRESS_WIDE void error_of_group(const float* weight, const float* scale, int64_t count, float largest,
                                   bool symmetric, float* error) {
  constexpr int64_t kLanes = 16;  // extremes beside each other, as wide registers hold them
  std::array<float, kLanes> low{}, high{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = weight[i + lane] * scale[i + lane];
      auto& least = low[static_cast<size_t>(lane)];
      auto& most = high[static_cast<size_t>(lane)];
      least = value < least ? value : least;
      most = value > most ? value : most;
    }
  }
  for (; i < count; ++i) {
    low[0] = std::min(low[0], weight[i] * scale[i]);
    high[0] = std::max(high[0], weight[i] * scale[i]);
  }
  float lowest = *std::min_element(low.begin(), low.end()),
        highest = *std::max_element(high.begin(), high.end());
  if (symmetric) {
    highest = std::max(highest, -lowest);
    lowest = -highest;
  }
  const float held = static_cast<c10::Half>((highest - lowest) / largest),
              step = held == 0 ? kLeastScale : held;
  const float zero = symmetric ? (largest + 1) / 2 : std::min(largest, rounded(-lowest / step));
  for (int64_t j = 0; j < count; ++j) {
    const float code = std::min(std::max(rounded(weight[j] * scale[j] / step) + zero, 0.0F), largest);
    error[j] = step * (code - zero) / scale[j] - weight[j];
  }
}

// W' - W, float32 [rows, channels].
at::Tensor error_with_scale(const at::Tensor& weight, const at::Tensor& scale, const GroupGrid& grid) {
  const int64_t rows = weight.size(0), channels = weight.size(1), size = size_of_group(grid, channels);
  const auto largest = static_cast<float>((1 << grid.bits) - 1);
  at::Tensor error = at::empty_like(weight);
  constexpr int64_t kGrain = 16;
  at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t first = 0; first < channels; first += size) {
        const int64_t at = row * channels + first;
        error_of_group(weight.const_data_ptr<float>() + at, scale.const_data_ptr<float>() + first,
                       std::min(size, channels - first), largest, grid.symmetric,
                       error.data_ptr<float>() + at);
      }
    }
  });
  return error;
}

double loss_of_error(const at::Tensor& error, const at::Tensor& hessian) {
  return (error.matmul(hessian) * error).sum(at::kDouble).item<double>();
}

// The mean over rows of |w| as a share of the largest in its group.
at::Tensor mean_shares(const std::vector<at::Tensor>& weights, const GroupGrid& grid) {
  const int64_t channels = weights[0].size(1), size = size_of_group(grid, channels);
  at::Tensor sum = at::zeros({channels});
  int64_t rows = 0;
  for (const at::Tensor& weight : weights) {
    const at::Tensor sizes = weight.abs();
    for (int64_t first = 0; first < channels; first += size) {
      const at::Tensor part = sizes.slice(1, first, std::min(first + size, channels));
      sum.slice(0, first, first + part.size(1)).add_((part / part.amax(1, true).clamp_min(1e-6)).sum(0));
    }
    rows += weight.size(0);
  }
  return sum.div_(static_cast<double>(std::max<int64_t>(1, rows))).clamp_min_(1e-4);
}

// So that it is around 1 and neither end of it leaves float16's range.
at::Tensor centred(const at::Tensor& scale) {
  const at::Tensor bounded = scale.clamp_min(1e-4);
  return (bounded / (bounded.max() * bounded.min()).sqrt()).clamp(1e-3, 1e3).contiguous();
}

}  // namespace

ScaleSearch search_scales(const std::vector<at::Tensor>& weights, const std::vector<GroupGrid>& grids,
                          const at::Tensor& hessian, const at::Tensor& mean_inputs, int64_t points) {
  const auto loss_with = [&](const at::Tensor& scale) {
    double loss = 0;
    for (size_t i = 0; i < weights.size(); ++i)
      loss += loss_of_error(error_with_scale(weights[i], scale, grids[i]), hessian);
    return loss;
  };
  const at::Tensor inputs = mean_inputs.clamp_min(1e-4), shares = mean_shares(weights, grids[0]);
  ScaleSearch search;
  for (size_t i = 0; i < weights.size(); ++i)
    search.plain_loss += nearest_loss(weights[i], grids[i], hessian);
  for (const bool by_weight : {false, true}) {
    for (int64_t i = by_weight ? 0 : 1; i < points; ++i) {
      const double power = static_cast<double>(i) / static_cast<double>(points);
      const at::Tensor by_input = inputs.pow(power);
      const at::Tensor scale = centred(by_weight ? by_input / shares.pow(1 - power) : by_input);
      const double loss = loss_with(scale);
      search.found.push_back(
          {scale, power, by_weight, std::isfinite(loss) ? loss : std::numeric_limits<double>::infinity()});
    }
  }
  std::stable_sort(search.found.begin(), search.found.end(),
                   [](const ChannelScale& a, const ChannelScale& b) { return a.loss < b.loss; });
  return search;
}

at::Tensor rounded_with_scale(const at::Tensor& weight, const at::Tensor& scale, const GroupGrid& grid) {
  return error_with_scale(weight, scale, grid).add_(weight);
}

IntGroup round_clipped(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& hessian) {
  constexpr int kSteps = 10;
  const int64_t channels = weight.size(1), size = size_of_group(grid, channels);
  const double largest = (1 << grid.bits) - 1;
  std::vector<at::Tensor> scales, zeros, codes;
  for (int64_t begin = 0; begin < channels; begin += size) {
    const int64_t end = std::min(begin + size, channels);
    const at::Tensor part = weight.slice(1, begin, end),
                     inside = hessian.slice(0, begin, end).slice(1, begin, end);
    at::Tensor low = part.amin(1, true).clamp_max(0), high = part.amax(1, true).clamp_min(0);
    if (grid.symmetric) {
      high = at::maximum(high, -low);
      low = -high;
    }
    at::Tensor best_loss, best_scale, best_zero, best_codes;
    // Of a symmetric grid, whose lowest code has no opposite, the other side too.
    const int tries = grid.symmetric ? 2 * kSteps : kSteps;
    for (int step = 0; step < tries; ++step) {
      const double share = (1 - 0.05 * (step % kSteps)) * (step < kSteps ? 1 : -1);
      at::Tensor scale = ((high - low) * (share / largest)).to(at::kHalf).to(at::kFloat);
      scale = scale.masked_fill(scale == 0, kLeastScale);
      const at::Tensor zero = grid.symmetric ? at::full_like(scale, (largest + 1) / 2)
                                             : (low * -share / scale).round_().clamp_(0, largest);
      const at::Tensor code = (part / scale).round_().add_(zero).clamp_(0, largest);
      const at::Tensor error = (code - zero).mul_(scale).sub_(part);
      const at::Tensor loss = (error.matmul(inside) * error).sum(1, true);
      if (step == 0) {
        best_loss = loss;
        best_scale = scale;
        best_zero = zero;
        best_codes = code;
        continue;
      }
      const at::Tensor better = loss < best_loss;
      best_loss = at::where(better, loss, best_loss);
      best_scale = at::where(better, scale, best_scale);
      best_zero = at::where(better, zero, best_zero);
      best_codes = at::where(better, code, best_codes);
    }
    scales.push_back(best_scale);
    zeros.push_back(best_zero);
    codes.push_back(best_codes);
  }
  if (!at::cat(scales, 1).isfinite().all().item<bool>())
    throw bad_data("weights up to {:.3g} need a scale beyond float16", weight.abs().max().item<double>());
  return {grid.bits, at::cat(codes, 1).to(at::kByte), at::cat(scales, 1).to(at::kHalf),
          at::cat(zeros, 1).to(at::kByte), groups_in_order(channels, grid.group_size)};
}

IntGroup round_for_awq(const at::Tensor& weight, GroupGrid grid, const at::Tensor& hessian, bool clip) {
  grid.search = false;
  return clip ? round_clipped(weight, grid, hessian) : round_to_groups(weight, grid);
}

double loss_of(const at::Tensor& weight, const at::Tensor& rounded, const at::Tensor& hessian) {
  return loss_of_error(rounded - weight, hessian);
}

double nearest_loss(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& hessian) {
  return loss_of_error(error_with_scale(weight, at::ones({weight.size(1)}), grid), hessian);
}

}  // namespace mcompress
