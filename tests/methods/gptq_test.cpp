#include "mcompress/methods/gptq.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"

namespace mcompress {
namespace {

at::Tensor normal(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kDouble);
}

// Of inputs whose channels are correlated and of very different size.
at::Tensor hessian_of(int64_t channels, uint64_t seed) {
  const at::Tensor mixed =
      normal({4 * channels, channels}, seed).matmul(normal({channels, channels}, seed + 1));
  const at::Tensor x = mixed * normal({channels}, seed + 2).exp();
  return x.t().matmul(x);
}

at::Tensor dequantize(const IntGroup& codes) { return dequantize_rows(codes, 0, codes.codes.size(0)); }

double loss_of(const IntGroup& codes, const at::Tensor& weight, const at::Tensor& hessian) {
  const at::Tensor difference = dequantize(codes).to(at::kDouble) - weight.to(at::kDouble);
  return (difference.matmul(hessian) * difference).sum().item<double>();
}

// The method as its paper derives it: after each channel the inverse of the Hessian loses that channel.
IntGroup plain_gptq(const at::Tensor& given, const at::Tensor& hessian, const GptqOptions& options) {
  const int64_t channels = given.size(1);
  const at::Tensor diagonal = hessian.diagonal();
  const at::Tensor damped = hessian + at::eye(channels, at::kDouble) * options.damping * diagonal.mean();
  const at::Tensor order =
      options.act_order ? damped.diagonal().argsort(true, 0, true) : at::arange(channels);
  at::Tensor inverse = at::linalg_inv(damped.index_select(0, order).index_select(1, order));
  at::Tensor weight = given.to(at::kDouble).index_select(1, order).clone();
  const int64_t size = options.grid.group_size < 0 ? channels : options.grid.group_size;
  IntGroup result;
  result.groups = groups_in_order(channels, size);
  const int64_t count = (channels + size - 1) / size;
  at::Tensor scale = at::zeros({given.size(0), count}, at::kDouble), zero = at::zeros_like(scale),
             codes = at::zeros_like(weight);
  at::Tensor costs = at::zeros({channels}, at::kDouble);  // of channels in order of work: 1 / U_jj^2
  {
    at::Tensor left = inverse.clone();
    for (int64_t j = 0; j < channels; ++j) {
      costs[j] = 1 / left[j][j];
      left = left - left.select(1, j).outer(left[j]) / left[j][j];
    }
  }
  const at::Tensor groups_in_work =
      options.static_groups ? result.groups.index_select(0, order) : result.groups;
  const auto set_scale = [&](int64_t group) {
    const at::Tensor members = (groups_in_work == group).nonzero().flatten();
    const GroupScale found =
        group_scale(weight.index_select(1, members), options.grid, costs.index_select(0, members));
    scale.select(1, group).copy_(found.scale);
    zero.select(1, group).copy_(found.zero);
  };
  if (options.static_groups) {
    for (int64_t group = 0; group < count; ++group) set_scale(group);
  }
  for (int64_t j = 0; j < channels; ++j) {
    const auto group = groups_in_work[j].item<int64_t>();
    if (!options.static_groups && j % size == 0) set_scale(group);
    const at::Tensor s = scale.select(1, group), z = zero.select(1, group), w = weight.select(1, j).clone();
    const at::Tensor code = ((w / s).round() + z).clamp(0, (1 << options.grid.bits) - 1);
    codes.select(1, j).copy_(code);
    weight -= ((w - s * (code - z)) / inverse[j][j]).outer(inverse[j]);
    inverse = inverse - inverse.select(1, j).outer(inverse[j]) / inverse[j][j];
  }
  const at::Tensor back = order.argsort();
  result.codes = codes.index_select(1, back).to(at::kByte);
  result.scale = scale.to(at::kHalf);
  result.zero = zero.to(at::kByte);
  result.groups = groups_in_work.index_select(0, back);
  return result;
}

struct Setting {
  int bits;
  int64_t channels, group;
  bool symmetric, search, act_order, static_groups;
};

class EveryGptq : public ::testing::TestWithParam<Setting> {};

TEST_P(EveryGptq, GivesTheLossOfThePlainMethodAndNoMoreThanRounding) {
  const Setting& s = GetParam();
  const at::Tensor weight = normal({70, s.channels}, 3), hessian = hessian_of(s.channels, 4);
  const GptqOptions options = {
      {s.bits, s.group, s.symmetric, s.search}, s.act_order, s.static_groups, 0, 0.01};
  const GptqResult result = gptq(weight, hessian, options);
  const IntGroup plain = plain_gptq(weight, hessian, options);
  const double expected = loss_of(plain, weight, hessian);
  EXPECT_TRUE(result.weight.groups.equal(plain.groups));
  EXPECT_FALSE(result.rounded);
  EXPECT_NEAR(result.loss, expected, 1e-6 * expected);
  EXPECT_NEAR(result.loss, loss_of(result.weight, weight, hessian), 1e-9 * result.loss);
  EXPECT_LE(result.loss, result.rounded_loss);
  EXPECT_LT(result.loss, 0.9 * result.rounded_loss);  // these channels are correlated
  EXPECT_EQ(factor_hessian(hessian, options).damping, 0.01);
  EXPECT_LE(result.weight.codes.max().item<int>(), (1 << s.bits) - 1);
}

INSTANTIATE_TEST_SUITE_P(Settings, EveryGptq,
                         ::testing::Values(Setting{4, 96, 32, false, true, true, true},
                                           Setting{4, 96, 32, true, true, true, true},
                                           Setting{3, 96, -1, false, false, true, true},
                                           Setting{2, 96, 16, false, true, false, true},
                                           Setting{8, 96, 32, false, false, false, false},
                                           Setting{4, 200, 64, false, true, false, false},
                                           Setting{4, 200, 150, true, false, true, false},
                                           Setting{3, 300, 128, false, true, true, true},
                                           Setting{5, 130, 130, false, true, true, false}));

TEST(Gptq, IsRoundingWhereChannelsAreIndependent) {
  const at::Tensor weight = normal({20, 64}, 1);
  for (const bool act_order : {false, true}) {
    const GptqOptions options = {{4, 16, false, false}, act_order, true, 0, 0.01};
    const GptqResult result = gptq(weight, at::eye(64, at::kDouble), options);
    const IntGroup rounded = round_to_groups(weight, options.grid);
    EXPECT_TRUE(result.weight.codes.equal(rounded.codes));
    EXPECT_TRUE(result.weight.scale.equal(rounded.scale));
    EXPECT_TRUE(result.weight.zero.equal(rounded.zero));
  }
}

// Codes and scales at which no step of one of them alone lowers the loss are where descent ends.
TEST(Gptq, DescentEndsWhereNoCodeIsBetterAlone) {
  const at::Tensor weight = normal({6, 48}, 13), hessian = hessian_of(48, 14);
  for (const bool act_order : {false, true}) {
    for (const bool static_groups : {false, true}) {
      GptqOptions options = {{3, 16, false, true}, act_order, static_groups, 0, 0};
      double before = gptq(weight, hessian, options).loss;
      for (const int sweeps : {1, 2, 50}) {
        options.sweeps = sweeps;
        const GptqResult result = gptq(weight, hessian, options);
        EXPECT_LT(result.loss, sweeps == 1 ? 0.99 * before : before * (1 + 1e-12));
        EXPECT_NEAR(result.loss, loss_of(result.weight, weight, hessian), 1e-9 * result.loss);
        before = result.loss;
      }
      options.sweeps = 50;
      const IntGroup ended = gptq(weight, hessian, options).weight;
      const double least = loss_of(ended, weight, hessian);
      for (int64_t channel = 0; channel < 48; ++channel) {
        for (const int step : {-1, 1}) {
          IntGroup other = ended;
          other.codes = ended.codes.clone();
          const int code = other.codes[2][channel].item<int>() + step;
          if (code < 0 || code > 7) continue;
          other.codes[2][channel] = code;
          EXPECT_GE(loss_of(other, weight, hessian), least * (1 - 1e-12));
        }
      }
    }
  }
}

TEST(Gptq, GivesTheSameBytesForAnyNumberOfThreads) {
  const at::Tensor weight = normal({300, 256}, 5), hessian = hessian_of(256, 6);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const GptqResult one = gptq(weight, hessian, {});
  at::set_num_threads(2);
  const GptqResult two = gptq(weight, hessian, {});
  at::set_num_threads(before);
  EXPECT_TRUE(one.weight.codes.equal(two.weight.codes));
  EXPECT_TRUE(one.weight.scale.equal(two.weight.scale));
}

TEST(Gptq, TakesDeadAndDependentChannels) {
  const at::Tensor weight = normal({8, 32}, 7);
  at::Tensor hessian = hessian_of(32, 8);
  hessian.select(0, 5).zero_();
  hessian.select(1, 5).zero_();
  const GptqResult dead = gptq(weight, hessian, {{4, 16}});
  EXPECT_EQ(factor_hessian(hessian, {}).dead.sum().item<int>(), 1);
  EXPECT_EQ(dequantize(dead.weight).select(1, 5).abs().max().item<double>(), 0);
  // All inputs alike: one direction, and nothing without damping.
  const at::Tensor same = at::ones({32, 32}, at::kDouble);
  const GptqOptions undamped = {{4, 16}, true, true, 2, 0};
  const GptqResult singular = gptq(weight, same, undamped);
  EXPECT_GT(factor_hessian(same, undamped).damping, 0);
  EXPECT_TRUE(std::isfinite(singular.loss));
}

TEST(Gptq, RefusesWhatIsNotFinite) {
  at::Tensor weight = normal({4, 8}, 9), hessian = hessian_of(8, 10);
  const at::Tensor negative = -hessian;
  EXPECT_THROW(gptq(weight, negative, {}), Error);
  hessian[2][3] = std::numeric_limits<double>::infinity();
  EXPECT_THROW(gptq(weight, hessian, {}), Error);
  weight[0][0] = NAN;
  EXPECT_THROW(gptq(weight, hessian_of(8, 10), {}), Error);
}

TEST(GroupGrid, RoundsByHand) {
  const at::Tensor weight = at::tensor({-1.0, 0.0, 1.0, 2.0, 0.0, 0.0}, at::kDouble).view({1, 6});
  const IntGroup asymmetric = round_to_groups(weight, {2, 4});
  // Range 3 by 3 steps; the last group is smaller, and of zeros.
  EXPECT_TRUE(asymmetric.codes.equal(at::tensor({0, 1, 2, 3, 0, 0}, at::kByte).view({1, 6})));
  EXPECT_TRUE(asymmetric.scale.equal(at::ones({1, 2}, at::kHalf)));
  EXPECT_TRUE(asymmetric.zero.equal(at::tensor({1, 0}, at::kByte).view({1, 2})));
  EXPECT_TRUE(dequantize(asymmetric).equal(weight.to(at::kFloat)));
  // Scale 4 / 3, zero point 2: round(-0.75) + 2, 2, round(0.75) + 2, and round(1.5) + 2, which is clipped.
  const IntGroup symmetric = round_to_groups(weight, {2, 4, true});
  EXPECT_TRUE(symmetric.codes.slice(1, 0, 4).equal(at::tensor({1, 2, 3, 3}, at::kByte).view({1, 4})));
  EXPECT_EQ(symmetric.zero[0][0].item<int>(), 2);
  EXPECT_TRUE(round_to_groups(weight, {2, -1}).groups.equal(at::zeros({6}, at::kLong)));
  EXPECT_THROW(round_to_groups(weight, {2, 0}), Error);
}

TEST(GroupGrid, SearchNeverLosesMore) {
  const at::Tensor weight = normal({50, 64}, 11), importance = normal({64}, 12).exp();
  const auto error = [&](const GroupGrid& grid) {
    return ((dequantize(round_to_groups(weight, grid, importance)).to(at::kDouble) - weight).square() *
            importance)
        .sum()
        .item<double>();
  };
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool symmetric : {false, true})
      EXPECT_LT(error({bits, 32, symmetric, true}),
                (bits < 8 ? 0.99 : 1.001) * error({bits, 32, symmetric, false}));
  }
}

TEST(GroupGrid, SearchKeepsLargeWeightsWhereInputsAreUnknown) {
  const at::Tensor weight = normal({50, 64}, 13), squares = weight.square().view({50, 2, 32});
  const at::Tensor costs = (squares + 2 * squares.mean(2, true)).view_as(weight);
  const auto error = [&](const GroupGrid& grid, const at::Tensor& importance) {
    return ((dequantize(round_to_groups(weight, grid, importance)).to(at::kDouble) - weight).square() * costs)
        .sum()
        .item<double>();
  };
  const at::Tensor alike = at::ones({64}, at::kDouble);
  for (const int bits : {2, 3, 4}) {
    for (const bool symmetric : {false, true}) {
      const double by_size = error({bits, 32, symmetric, true}, {});
      EXPECT_LT(by_size, 0.99 * error({bits, 32, symmetric, true}, alike));
      EXPECT_LT(by_size, 0.96 * error({bits, 32, symmetric, false}, {}));
    }
  }
}

}  // namespace
}  // namespace mcompress
