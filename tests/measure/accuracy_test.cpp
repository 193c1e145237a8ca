#include "mcompress/measure/accuracy.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"

namespace mcompress {
namespace {

// Six samples of six classes whose logits are the inputs themselves.
Dataset logits_as_inputs(const at::Tensor& logits, const std::vector<int64_t>& labels) {
  return {logits, at::tensor(labels, at::kLong), {}};
}

TEST(MeasureAccuracy, CountsAndLossOfACaseWorkedByHand) {
  const at::Tensor logits = at::eye(6) * 2;  // class i for sample i
  const Accuracy result = measure_accuracy([](const at::Tensor& x) { return x; },
                                           logits_as_inputs(logits, {0, 1, 2, 3, 4, 0}), 4);
  EXPECT_EQ(result.top1.count, 5);
  EXPECT_GE(result.top5.count, 5);
  const double right = -std::log(std::exp(2) / (std::exp(2) + 5));
  const double wrong = -std::log(1 / (std::exp(2) + 5));
  EXPECT_NEAR(result.loss, (5 * right + wrong) / 6, 1e-6);
}

TEST(MeasureAccuracy, RefusesWhatCannotBeScored) {
  const Dataset data = logits_as_inputs(at::eye(3), {0, 1, 5});
  EXPECT_THROW(measure_accuracy([](const at::Tensor& x) { return x; }, data, 2),
               Error);  // label 5 of 3 classes
  EXPECT_THROW(measure_accuracy([](const at::Tensor& x) { return x.flatten(); }, data, 2),
               Error);  // not [batch, classes]
  EXPECT_THROW(measure_accuracy([](const at::Tensor& x) { return x / 0; }, data, 2), Error);  // NaN
}

TEST(WilsonInterval, MatchesPublishedValues) {
  // Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
  EXPECT_NEAR(wilson_interval({81, 263}).low, 0.2553, 5e-5);
  EXPECT_NEAR(wilson_interval({81, 263}).high, 0.3662, 5e-5);
  EXPECT_NEAR(wilson_interval({0, 20}).low, 0, 1e-12);
  EXPECT_NEAR(wilson_interval({0, 20}).high, 0.1611, 5e-5);
}

TEST(Agreement, ComparesClassesAndOutputs) {
  const Accuracy a{{}, {}, 0, 0, at::eye(4)};
  const Accuracy b{{}, {}, 0, 0, at::eye(4) + at::tensor({0.0F, 0.0F, 0.0F, 0.1F})};
  EXPECT_EQ(agreement(a, b).count, 4);
  EXPECT_NEAR(output_sqnr_db(a, b), 10 * std::log10(4 / (4 * 0.01)), 1e-4);
}

TEST(MeasureLatency, TakesTurnsAndOrdersItsPercentiles) {
  int calls = 0;
  const auto model = [&calls](const at::Tensor& x) {
    ++calls;
    return x;
  };
  const auto result = measure_latency({model, model}, at::ones({3, 2}), 0.0);
  ASSERT_EQ(result.size(), 2U);
  EXPECT_EQ(result[0].batch_size, 3);
  EXPECT_EQ(result[0].runs, result[1].runs);
  EXPECT_GE(result[0].runs, 10);
  EXPECT_EQ(calls, 2 * (result[0].runs + 3));
  EXPECT_LE(result[0].p50, result[0].p90);
  EXPECT_LE(result[0].p90, result[0].p99);
}

}  // namespace
}  // namespace mcompress
