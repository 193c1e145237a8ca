#include <array>
#include <cmath>

#include "mcompress/report/report.h"

namespace mcompress {

namespace {

// 97.5 % of Student's t with so many degrees of freedom, from 1.
double student_t(size_t freedom) {
  constexpr std::array kTable = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                                 2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                                 2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
  constexpr double kNormal = 1.96;
  return freedom <= kTable.size() ? kTable[freedom - 1] : kNormal;
}

template <typename Value>
std::optional<SeedMean> mean_over(const std::vector<DistillRun>& runs, Value value_of) {
  std::vector<double> values;
  for (const DistillRun& run : runs) {
    const std::optional<double> value = value_of(run);
    if (value) values.push_back(*value);
  }
  return values.empty() ? std::nullopt : std::optional(mean_of(values));
}

std::optional<double> value_of(const std::optional<Share>& share) {
  return share ? std::optional(share->value()) : std::nullopt;
}

}  // namespace

SeedMean mean_of(const std::vector<double>& values) {
  SeedMean result;
  const auto count = static_cast<double>(values.size());
  for (const double value : values) result.mean += value / count;
  if (values.size() < 2) return result;
  double squares = 0;
  for (const double value : values) squares += (value - result.mean) * (value - result.mean);
  result.deviation = std::sqrt(squares / (count - 1));
  const double margin = student_t(values.size() - 1) * *result.deviation / std::sqrt(count);
  result.low = result.mean - margin;
  result.high = result.mean + margin;
  return result;
}

std::optional<SeedMean> Distillation::top1() const {
  return mean_over(runs, [](const DistillRun& run) { return value_of(run.top1); });
}

std::optional<SeedMean> Distillation::baseline() const {
  return mean_over(runs, [](const DistillRun& run) { return value_of(run.baseline); });
}

std::optional<SeedMean> Distillation::gain() const {
  return mean_over(runs, [](const DistillRun& run) {
    return run.top1 && run.baseline ? std::optional(run.top1->value() - run.baseline->value()) : std::nullopt;
  });
}

}  // namespace mcompress
