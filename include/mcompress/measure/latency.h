#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace mcompress {

using Forward = std::function<at::Tensor(const at::Tensor&)>;

// Times of one forward pass over a batch, seconds.
struct Latency {
  int64_t batch_size = 0, runs = 0;
  double p50 = 0, p90 = 0, p99 = 0;
  double samples_per_second() const { return static_cast<double>(batch_size) / p50; }
};

// Times each model on `input` after a warm-up. The models take turns, so that a busy machine slows
// them alike. Runs for about `seconds` a model, and at least 10 times.
std::vector<Latency> measure_latency(const std::vector<Forward>& models, const at::Tensor& input,
                                     double seconds);

}  // namespace mcompress
