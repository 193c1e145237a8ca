#include "mcompress/methods/observer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"

namespace mcompress {

InputGrid grid_of(const Range& range, int bits) {
  const double top = (1 << bits) - 1;
  const double width = range.high - range.low;
  // Half of float32's smallest normal number times 255: a constant 0 as input.
  constexpr double kLeast = 1e-30;
  InputGrid grid;
  grid.bits = bits;
  grid.scale = std::max(width, kLeast) / top;
  grid.zero_point = std::clamp<int64_t>(std::llround(-range.low / grid.scale), 0, static_cast<int64_t>(top));
  return grid;
}

void Observer::reach_for(double magnitude) {
  if (bins_.empty()) {
    bins_.assign(kBins, 0);
    reach_ =
        magnitude > 0 ? std::exp2(std::floor(std::log2(magnitude)) + 1) : std::numeric_limits<float>::min();
    return;
  }
  while (magnitude >= reach_) {
    std::vector<int64_t> wider(kBins, 0);
    for (int64_t bin = 0; bin < kBins; ++bin)
      wider[static_cast<size_t>(kBins / 4 + bin / 2)] += bins_[static_cast<size_t>(bin)];
    bins_ = std::move(wider);
    reach_ *= 2;
  }
}

void Observer::count_values(const float* values, int64_t size) {
  constexpr int64_t kGrain = int64_t{1} << 16;
  const auto per_bin = static_cast<float>(kBins / 2 / reach_);
  std::mutex mutex;
  at::parallel_for(0, size, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> bins(kBins, 0);  // a thread's share of a batch is far below 2^31
    for (int64_t i = begin; i < end; ++i) {
      const auto bin = static_cast<int64_t>(std::floor(values[i] * per_bin)) + kBins / 2;
      ++bins[static_cast<size_t>(std::clamp<int64_t>(bin, 0, kBins - 1))];
    }
    const std::lock_guard lock(mutex);
    for (size_t bin = 0; bin < bins.size(); ++bin) bins_[bin] += bins[bin];
  });
}

void Observer::add(const at::Tensor& values) {
  if (values.numel() == 0) return;
  const at::Tensor flat = values.detach().to(at::kFloat).contiguous(values.suggest_memory_format());
  const auto [least, largest] = flat.aminmax();
  const Range batch{std::min(least.item<double>(), 0.0), std::max(largest.item<double>(), 0.0)};
  if (!std::isfinite(least.item<double>()) || !std::isfinite(largest.item<double>()))
    throw bad_data("layer '{}' is given NaN or infinity by the calibration data", layer_);
  if (count_ == 0) {
    seen_ = average_ = batch;
  } else {
    seen_ = {std::min(seen_.low, batch.low), std::max(seen_.high, batch.high)};
    average_.low += kMovingAverageWeight * (batch.low - average_.low);
    average_.high += kMovingAverageWeight * (batch.high - average_.high);
  }
  count_ += flat.numel();
  reach_for(std::max(-seen_.low, seen_.high));
  count_values(flat.const_data_ptr<float>(), flat.numel());
}

double Observer::centre(int64_t bin) const {
  return (static_cast<double>(bin - kBins / 2) + 0.5) * (2 * reach_ / kBins);
}

double Observer::squared_error(const Range& range, int bits) const {
  const InputGrid grid = grid_of(range, bits);
  const double top = static_cast<double>(grid.top()), inverse = 1 / grid.scale;
  const auto zero_point = static_cast<double>(grid.zero_point);
  double sum = 0;
  for (int64_t bin = 0; bin < kBins; ++bin) {
    const int64_t count = bins_[static_cast<size_t>(bin)];
    if (count == 0) continue;
    const double value = centre(bin);
    const double code = std::clamp(std::floor(value * inverse + zero_point + 0.5), 0.0, top);
    const double error = value - (code - zero_point) * grid.scale;
    sum += static_cast<double>(count) * error * error;
  }
  return sum;
}

Range Observer::percentile_range(double share) const {
  const double outside = (1 - share) * static_cast<double>(count_);
  const double width = 2 * reach_ / kBins;
  Range range = seen_;
  double below = 0, above = 0;
  for (int64_t bin = 0; bin < kBins; ++bin) {
    below += static_cast<double>(bins_[static_cast<size_t>(bin)]);
    if (below > outside) {
      range.low = centre(bin) - width / 2;
      break;
    }
  }
  for (int64_t bin = kBins - 1; bin >= 0; --bin) {
    above += static_cast<double>(bins_[static_cast<size_t>(bin)]);
    if (above > outside) {
      range.high = centre(bin) + width / 2;
      break;
    }
  }
  return {std::clamp(range.low, seen_.low, 0.0), std::clamp(range.high, 0.0, seen_.high)};
}

Range Observer::histogram_range(int bits) const {
  const double width = 2 * reach_ / kBins;
  int64_t first = 0, last = kBins - 1;
  const auto count_at = [&](int64_t bin) { return bins_[static_cast<size_t>(bin)]; };
  while (first < kBins / 2 && count_at(first) == 0) ++first;
  while (last >= kBins / 2 && count_at(last) == 0) --last;
  Range best = seen_;
  double least = squared_error(best, bits);
  int64_t below = 0, above = 0;
  // A step of this share of all values at a time, so that one empty bin does not end the search.
  constexpr double kStep = 1e-5;
  const auto step = std::max<int64_t>(1, static_cast<int64_t>(kStep * static_cast<double>(count_)));
  while (first < kBins / 2 || last >= kBins / 2) {
    const bool from_below = last < kBins / 2 || (first < kBins / 2 && below <= above);
    int64_t& left_out = from_below ? below : above;
    for (const int64_t until = left_out + step;
         left_out < until && (from_below ? first < kBins / 2 : last >= kBins / 2);)
      left_out += count_at(from_below ? first++ : last--);
    const Range range{std::clamp(centre(first) - width / 2, seen_.low, 0.0),
                      std::clamp(centre(last) + width / 2, 0.0, seen_.high)};
    const double error = squared_error(range, bits);
    if (error > least) break;
    best = range;
    least = error;
  }
  return best;
}

Range Observer::mse_range(int bits) const {
  constexpr int kSteps = 100;
  Range best = seen_;
  double least = squared_error(best, bits);
  const auto attempt = [&](const Range& range) {
    const double error = squared_error(range, bits);
    if (error >= least) return;
    least = error;
    best = range;
  };
  for (int step = kSteps - 1; step > 0; --step) {
    const double share = static_cast<double>(step) / kSteps;
    attempt({seen_.low * share, seen_.high * share});
  }
  if (seen_.low == 0 || seen_.high == 0) return best;
  for (int step = kSteps; step > 0; --step) attempt({seen_.low * step / kSteps, best.high});
  for (int step = kSteps; step > 0; --step) attempt({best.low, seen_.high * step / kSteps});
  return best;
}

Range Observer::range(ObserverKind kind, int bits, double percentile) const {
  switch (kind) {
    case ObserverKind::kMinMax: return seen_;
    case ObserverKind::kMovingAverage: return average_;
    case ObserverKind::kHistogram: return histogram_range(bits);
    case ObserverKind::kPercentile: return percentile_range(percentile / 100);
    case ObserverKind::kMse: return mse_range(bits);
  }
  return seen_;
}

}  // namespace mcompress
