#include "mcompress/measure/latency.h"

#include <algorithm>
#include <cmath>

#include "mcompress/base/clock.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace {

// The nearest-rank percentile of sorted times.
double percentile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double time_once(const Forward& model, const at::Tensor& input) {
  check_interrupt();
  const auto start = Clock::now();
  model(input);
  return seconds_since(start);
}

}  // namespace

std::vector<Latency> measure_latency(const std::vector<Forward>& models, const at::Tensor& input,
                                     double seconds) {
  constexpr int kWarmUp = 3;
  constexpr size_t kMinRuns = 10;
  for (const Forward& model : models) {
    for (int i = 0; i < kWarmUp; ++i) time_once(model, input);
  }
  std::vector<std::vector<double>> times(models.size());
  for (double spent = 0;
       spent < seconds * static_cast<double>(models.size()) || times[0].size() < kMinRuns;) {
    for (size_t i = 0; i < models.size(); ++i) {
      times[i].push_back(time_once(models[i], input));
      spent += times[i].back();
    }
  }
  std::vector<Latency> result;
  for (std::vector<double>& series : times) {
    std::sort(series.begin(), series.end());
    result.push_back({input.size(0), static_cast<int64_t>(series.size()), percentile(series, 0.5),
                      percentile(series, 0.9), percentile(series, 0.99)});
  }
  return result;
}

}  // namespace mcompress
