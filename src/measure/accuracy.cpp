#include "mcompress/measure/accuracy.h"

#include <algorithm>
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

Accuracy measure_accuracy(const Forward& forward, const Dataset& data, int64_t batch_size) {
  std::vector<at::Tensor> logits;
  {
    Progress progress("evaluate", data.size());
    data.for_batches(batch_size, [&](const at::Tensor& batch, int64_t begin, int64_t end) {
      logits.push_back(forward(batch).to(at::kFloat));
      if (logits.back().dim() != 2 || logits.back().size(0) != end - begin) {
        throw bad_data("the model's output is not [batch, classes], so it cannot be scored against labels");
      }
      progress.step(end - begin);
    });
  }
  Accuracy result;
  result.logits = at::cat(logits);
  const int64_t classes = result.logits.size(1);
  if (data.labels.max().item<int64_t>() >= classes || data.labels.min().item<int64_t>() < 0) {
    throw bad_data("the data has labels outside the model's {} classes", classes);
  }
  if (!result.logits.isfinite().all().item<bool>())
    throw bad_data("the model's outputs hold NaN or infinity");
  constexpr int64_t kTop = 5;
  constexpr double kZ = 1.959963984540054;
  const at::Tensor labels = data.labels.unsqueeze(1);
  const at::Tensor hits = std::get<1>(result.logits.topk(std::min(kTop, classes), 1)) == labels;
  result.top1 = {hits.select(1, 0).sum().item<int64_t>(), data.size()};
  result.top5 = {hits.any(1).sum().item<int64_t>(), data.size()};
  const at::Tensor losses = -result.logits.to(at::kDouble).log_softmax(1).gather(1, labels);
  result.loss = losses.mean().item<double>();
  const auto count = static_cast<double>(data.size());
  result.loss_margin = kZ * std::sqrt((losses - result.loss).square().mean().item<double>() / count);
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
