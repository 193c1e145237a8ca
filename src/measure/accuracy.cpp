#include "mcompress/measure/accuracy.h"

#include <chrono>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/progress.h"

namespace mcompress {

Interval wilson_interval(const Share& share) {
  constexpr double kZ = 1.959963984540054;  // 97.5 % of the normal distribution
  const auto n = static_cast<double>(share.total);
  const double p = share.value();
  const double centre = (p + kZ * kZ / (2 * n)) / (1 + kZ * kZ / n);
  const double half = kZ / (1 + kZ * kZ / n) * std::sqrt(p * (1 - p) / n + kZ * kZ / (4 * n * n));
  return {centre - half, centre + half};
}

Accuracy measure_accuracy(const std::function<at::Tensor(const at::Tensor&)>& forward, const Images& images,
                          int64_t batch_size) {
  using Clock = std::chrono::steady_clock;
  Accuracy result;
  std::vector<at::Tensor> logits;
  Progress progress("evaluate", images.size());
  for (int64_t begin = 0; begin < images.size(); begin += batch_size) {
    const int64_t end = std::min(begin + batch_size, images.size());
    const at::Tensor input = images.batch(begin, end);
    const auto start = Clock::now();
    logits.push_back(forward(input).to(at::kFloat));
    result.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    if (logits.back().dim() != 2 || logits.back().size(0) != end - begin) {
      throw bad_data("the model's output is not [batch, classes], so it cannot be scored against labels");
    }
    progress.step(end - begin);
  }
  result.logits = at::cat(logits);
  const int64_t classes = result.logits.size(1);
  if (images.labels.max().item<int64_t>() >= classes)
    throw bad_data("the data has labels beyond the model's {} classes", classes);
  if (!result.logits.isfinite().all().item<bool>())
    throw bad_data("the model's outputs hold NaN or infinity");
  const at::Tensor labels = images.labels.unsqueeze(1);
  const at::Tensor ranked = std::get<1>(result.logits.topk(std::min<int64_t>(5, classes), 1));
  const at::Tensor hits = ranked == labels;
  result.top1 = {hits.select(1, 0).sum().item<int64_t>(), images.size()};
  result.top5 = {hits.any(1).sum().item<int64_t>(), images.size()};
  result.loss = -result.logits.to(at::kDouble).log_softmax(1).gather(1, labels).mean().item<double>();
  return result;
}

Share agreement(const Accuracy& reference, const Accuracy& other) {
  return {(reference.logits.argmax(1) == other.logits.argmax(1)).sum().item<int64_t>(),
          reference.logits.size(0)};
}

double output_sqnr_db(const Accuracy& reference, const Accuracy& other) {
  const double signal = reference.logits.square().sum(at::kDouble).item<double>();
  const double noise = (reference.logits - other.logits).square().sum(at::kDouble).item<double>();
  return 10.0 * std::log10(signal / noise);
}

}  // namespace mcompress
