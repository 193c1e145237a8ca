#include "mcompress/methods/awq.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace mcompress {
namespace {

constexpr GroupGrid kFour{.bits = 4, .group_size = 4, .symmetric = false, .search = false};

// Four input channels in one group, of which the last is large and has small weights.
const at::Tensor kMeans = at::tensor({1.0F, 2.0F, 1.0F, 16.0F});
at::Tensor weight() {
  return at::tensor({0.8F, -0.7F, 0.5F, 0.037F, -0.6F, 0.9F, -0.8F, 0.052F}).view({2, 4});
}
at::Tensor hessian() { return at::diag(kMeans.square()); }

double ratio(const at::Tensor& scale, int64_t a, int64_t b) {
  return scale[a].item<double>() / scale[b].item<double>();
}

TEST(Awq, TriesPowersOfInputsAndOfTheirRatioToWeights) {
  const ScaleSearch search = search_scales({weight()}, {kFour}, hessian(), kMeans, 20);
  ASSERT_EQ(search.found.size(), 39);  // both from 0 to 0.95, of which one of no power is none
  EXPECT_DOUBLE_EQ(search.plain_loss, nearest_loss(weight(), kFour, hessian()));
  std::set<double> powers, powers_by_weight;
  // Mean over rows of |w| by the largest of the group.
  const double share0 = (0.8 / 0.8 + 0.6 / 0.9) / 2, share3 = (0.037 / 0.8 + 0.052 / 0.9) / 2;
  double last = 0;
  for (const ChannelScale& tried : search.found) {
    (tried.by_weight ? powers_by_weight : powers).insert(std::round(tried.power * 20));
    const double by_input = std::pow(16.0, tried.power),
                 by_weight = std::pow(share3 / share0, 1 - tried.power);
    EXPECT_NEAR(ratio(tried.scale, 3, 0), tried.by_weight ? by_input / by_weight : by_input,
                1e-4 * by_input / by_weight);
    EXPECT_NEAR((tried.scale.max() * tried.scale.min()).item<double>(), 1, 1e-4);
    EXPECT_NEAR(tried.loss, loss_of(weight(), rounded_with_scale(weight(), tried.scale, kFour), hessian()),
                1e-6 * tried.loss);
    EXPECT_GE(tried.loss, last);
    last = tried.loss;
  }
  EXPECT_EQ(powers.size(), 19);
  EXPECT_EQ(powers_by_weight.size(), 20);
  EXPECT_LT(search.found[0].loss, 0.5 * search.plain_loss);
}

TEST(Awq, LosesNoLessWhereNothingIsLost) {
  // On the grid, so that nothing is lost.
  const at::Tensor exact = at::tensor({0.0F, 15.0F, 3.0F, 7.0F}).view({1, 4});
  const ScaleSearch search = search_scales({exact}, {kFour}, hessian(), kMeans, 20);
  EXPECT_EQ(search.plain_loss, 0);
  ASSERT_FALSE(search.found.empty());
  EXPECT_GE(search.found[0].loss, search.plain_loss);
}

// An outlier of no input takes the range from the others.
TEST(Awq, NarrowsRangesWhereLessIsLost) {
  const at::Tensor outlier = at::tensor({1.0F, 0.45F, -0.38F, 0.14F}).view({1, 4});
  const at::Tensor importance = at::diag(at::tensor({0.001F, 1.0F, 1.0F, 1.0F}));
  for (const bool symmetric : {true, false}) {
    GroupGrid grid = kFour;
    grid.bits = 3;
    grid.symmetric = symmetric;
    const auto loss = [&](const IntGroup& rounded) {
      return loss_of(outlier, dequantize_rows(rounded, 0, 1), importance);
    };
    const IntGroup clipped = round_for_awq(outlier, grid, importance, true),
                   plain = round_for_awq(outlier, grid, importance, false);
    EXPECT_LT(loss(clipped), 0.8 * loss(plain));
    // No range of those that are tried loses less.
    const double low = symmetric ? -1 : -0.38, high = 1;
    double least = INFINITY;
    for (const double sign : {1, -1}) {
      for (int step = 0; step < 10 && (symmetric || sign > 0); ++step) {
        const double share = (1 - 0.05 * step) * sign;
        const double scale = static_cast<c10::Half>(static_cast<float>((high - low) * share / 7));
        const double zero = symmetric ? 4 : std::clamp(std::round(-low * share / scale), 0.0, 7.0);
        const at::Tensor codes = (outlier / scale).round().add(zero).clamp(0, 7);
        least = std::min(least, loss_of(outlier, (codes - zero) * scale, importance));
      }
    }
    EXPECT_NEAR(loss(clipped), least, 1e-6);
  }
}

}  // namespace
}  // namespace mcompress
