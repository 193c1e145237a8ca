#include "mcompress/methods/grid.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace mcompress {
namespace {

at::Tensor random_weight(int64_t rows, int64_t columns) {
  at::manual_seed(1);
  return at::randn({rows, columns});
}

TEST(QuantizeRows, ErrorIsAtMostHalfAStep) {
  const at::Tensor weight = random_weight(17, 63);
  for (const RowGrid& grid : {RowGrid{}, RowGrid{.pairs = true}}) {
    const IntChannel q = quantize_rows(weight, grid);
    const at::Tensor error = (q.codes.to(at::kFloat) * q.scale.unsqueeze(1) - weight).abs();
    EXPECT_TRUE((error <= q.scale.unsqueeze(1) * 0.5001).all().item<bool>());
  }
}

TEST(QuantizeRows, ScaleIsTheRowMaximumOver127) {
  const IntChannel q = quantize_rows(at::tensor({1.0F, -2.54F, 0.0F, 0.0F}).view({2, 2}), RowGrid{});
  EXPECT_FLOAT_EQ(q.scale[0].item<float>(), 0.02F);
  EXPECT_EQ(q.codes[0][0].item<int>(), 50);
  EXPECT_EQ(q.codes[0][1].item<int>(), -127);
  EXPECT_EQ(q.scale[1].item<float>(), 1.0F);  // a row of zeros
}

TEST(QuantizeRows, PairsNeverSaturateSixteenBits) {
  const IntChannel q = quantize_rows(random_weight(200, 64), RowGrid{.pairs = true});
  const at::Tensor pairs = q.codes.to(at::kInt).abs().view({200, 32, 2}).sum(2);
  EXPECT_LE(pairs.max().item<int>(), 128);
  EXPECT_GT(quantize_rows(random_weight(200, 64), RowGrid{})
                .codes.to(at::kInt)
                .abs()
                .view({200, 32, 2})
                .sum(2)
                .max()
                .item<int>(),
            128);
}

// The same numbers in plain tensor operations.
IntChannel quantize_plainly(const at::Tensor& weight, const RowGrid& grid) {
  const at::Tensor rows = weight.to(at::kFloat).flatten(1);
  at::Tensor scale = rows.abs().amax(1) / 127;
  if (grid.pairs) {  // neighbouring input channels
    const at::Tensor channels = weight.to(at::kFloat).abs();
    const at::Tensor pairs = channels.slice(1, 0, weight.size(1) / 2 * 2).unflatten(1, {-1, 2}).sum(2);
    scale = at::maximum(scale, pairs.flatten(1).amax(1) / 127.5);
  }
  return {(rows / scale.unsqueeze(1)).round().to(at::kChar).view(weight.sizes()), scale};
}

TEST(QuantizeRows, GivesTheNumbersOfPlainTensorOperationsForEveryTypeAndLayout) {
  const at::Tensor wide = random_weight(3, 100'000), image = random_weight(24, 27).view({24, 3, 3, 3});
  const at::Tensor transposed = random_weight(65, 33).t(), half = random_weight(31, 62).to(at::kHalf);
  for (const RowGrid& grid : {RowGrid{}, RowGrid{.pairs = true}}) {
    for (const at::Tensor& weight : {wide, image, transposed, half, half.to(at::kDouble)}) {
      const IntChannel ours = quantize_rows(weight, grid), plain = quantize_plainly(weight, grid);
      EXPECT_TRUE(at::equal(ours.codes, plain.codes)) << weight.sizes();
      EXPECT_TRUE(at::equal(ours.scale, plain.scale)) << weight.sizes();
    }
  }
}

TEST(QuantizeRows, SearchedScaleHasTheLeastErrorOfItsCandidates) {
  const at::Tensor weight = random_weight(13, 77);
  for (const int bits : {2, 3, 4, 7}) {
    const IntChannel searched = quantize_rows(weight, {.bits = bits, .search = true});
    const IntChannel plain = quantize_rows(weight, {.bits = bits});
    const auto error = [&](const IntChannel& q) {
      return (q.codes.to(at::kFloat) * q.scale.unsqueeze(1) - weight).square().sum(1);
    };
    const at::Tensor least = error(searched);
    EXPECT_TRUE((least <= error(plain) * 1.0001).all().item<bool>()) << bits;
    for (int percent = 100; percent >= 20; percent -= 5) {
      const IntChannel other = round_rows(weight, plain.scale * (percent / 100.0), bits);
      EXPECT_TRUE((least <= error(other) * 1.0001).all().item<bool>()) << bits << " bits, " << percent;
    }
    EXPECT_GE(searched.codes.min().item<int>(), -(1 << (bits - 1)));
    EXPECT_LE(searched.codes.max().item<int>(), (1 << (bits - 1)) - 1);
  }
}

TEST(QuantizeTensor, HasTheScaleOfTheLargestRow) {
  const at::Tensor weight = at::tensor({1.0F, -2.54F, 0.0F, 0.0F}).view({2, 2});
  const IntChannel q = quantize_tensor(weight, RowGrid{});
  EXPECT_TRUE(at::allclose(q.scale, at::full({2}, 0.02F)));
  EXPECT_EQ(quantize_tensor(at::zeros({2, 2}), RowGrid{}).scale[0].item<float>(), 1.0F);
}

TEST(ErrorOf, IsThatOfACaseWorkedByHand) {
  const at::Tensor weight = at::tensor({3.0F, 4.0F}).view({1, 2});
  const IntChannel stored{at::tensor({3, 4}, at::kChar).view({1, 2}), at::tensor({1.1F})};
  const QuantizationError error = error_of(weight, stored);
  EXPECT_NEAR(error.sqnr_db, 20, 1e-4);  // the error is a tenth of the weight
  EXPECT_NEAR(error.max_error, 0.4, 1e-6);
  EXPECT_EQ(error_of(weight, Dense{weight}).sqnr_db, INFINITY);
}

}  // namespace
}  // namespace mcompress
