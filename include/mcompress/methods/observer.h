#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/model/static_layer.h"

namespace mcompress {

// How the range of what a layer is given is chosen. kMinMax: all that was seen. kMovingAverage: of each
// batch's range, a new one having kMovingAverageWeight. kHistogram: ends move inwards, the one first beyond
// which fewer values lie, while the squared error falls (as torch.ao's HistogramObserver). kPercentile: what
// leaves out the given share on each side. kMse: the least squared error of 100 narrower ranges, each end
// then on its own.
enum class ObserverKind { kMinMax, kMovingAverage, kHistogram, kPercentile, kMse };

struct Range {
  double low = 0, high = 0;  // 0 lies between
};

// The grid whose codes reach from range.low to range.high.
InputGrid grid_of(const Range& range, int bits);

inline constexpr double kMovingAverageWeight = 0.01;

// Watches the values that one layer is given. Memory does not depend on their number, and the result not on
// the number of threads.
class Observer {
 public:
  void add(const at::Tensor& values);  // throws Error(65) naming `layer` at NaN or infinity
  explicit Observer(std::string layer) : layer_(std::move(layer)) {}

  bool empty() const { return count_ == 0; }
  // `percentile` is for kPercentile: 99.99 leaves out 0.01 % on each side.
  Range range(ObserverKind kind, int bits, double percentile) const;

 private:
  // Bins of equal width over [-reach, reach). Where a value lies beyond, reach doubles and two bins become
  // one.
  static constexpr int64_t kBins = 8192;
  void reach_for(double magnitude);
  void count_values(const float* values, int64_t size);
  double centre(int64_t bin) const;
  double squared_error(const Range& range, int bits) const;
  Range histogram_range(int bits) const;
  Range percentile_range(double share) const;
  Range mse_range(int bits) const;

  std::string layer_;
  int64_t count_ = 0;  // values seen
  Range seen_, average_;
  double reach_ = 0;
  std::vector<int64_t> bins_;
};

}  // namespace mcompress
