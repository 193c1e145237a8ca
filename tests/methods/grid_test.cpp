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
  for (const Int8Grid grid : {Int8Grid::kRow, Int8Grid::kPair}) {
    const Int8Channel q = quantize_rows(weight, grid);
    const at::Tensor error = (q.codes.to(at::kFloat) * q.scale.unsqueeze(1) - weight).abs();
    EXPECT_TRUE((error <= q.scale.unsqueeze(1) * 0.5001).all().item<bool>());
  }
}

TEST(QuantizeRows, ScaleIsTheRowMaximumOver127) {
  const Int8Channel q = quantize_rows(at::tensor({1.0F, -2.54F, 0.0F, 0.0F}).view({2, 2}), Int8Grid::kRow);
  EXPECT_FLOAT_EQ(q.scale[0].item<float>(), 0.02F);
  EXPECT_EQ(q.codes[0][0].item<int>(), 50);
  EXPECT_EQ(q.codes[0][1].item<int>(), -127);
  EXPECT_EQ(q.scale[1].item<float>(), 1.0F);  // a row of zeros
}

TEST(QuantizeRows, PairsNeverSaturateSixteenBits) {
  const Int8Channel q = quantize_rows(random_weight(200, 64), Int8Grid::kPair);
  const at::Tensor pairs = q.codes.to(at::kInt).abs().view({200, 32, 2}).sum(2);
  EXPECT_LE(pairs.max().item<int>(), 128);
  EXPECT_GT(quantize_rows(random_weight(200, 64), Int8Grid::kRow)
                .codes.to(at::kInt)
                .abs()
                .view({200, 32, 2})
                .sum(2)
                .max()
                .item<int>(),
            128);
}

// The same numbers in plain tensor operations.
Int8Channel quantize_plainly(const at::Tensor& weight, Int8Grid grid) {
  const at::Tensor rows = weight.to(at::kFloat).flatten(1);
  at::Tensor scale = rows.abs().amax(1) / 127;
  if (grid == Int8Grid::kPair) {
    const at::Tensor pairs = rows.abs().slice(1, 0, rows.size(1) / 2 * 2).unflatten(1, {-1, 2}).sum(2);
    scale = at::maximum(scale, pairs.amax(1) / 127.5);
  }
  return {(rows / scale.unsqueeze(1)).round().to(at::kChar).view(weight.sizes()), scale};
}

TEST(QuantizeRows, GivesTheNumbersOfPlainTensorOperationsForEveryTypeAndLayout) {
  const at::Tensor wide = random_weight(3, 100'000), image = random_weight(24, 27).view({24, 3, 3, 3});
  const at::Tensor transposed = random_weight(65, 33).t(), half = random_weight(31, 62).to(at::kHalf);
  for (const Int8Grid grid : {Int8Grid::kRow, Int8Grid::kPair}) {
    for (const at::Tensor& weight : {wide, image, transposed, half, half.to(at::kDouble)}) {
      const Int8Channel ours = quantize_rows(weight, grid), plain = quantize_plainly(weight, grid);
      EXPECT_TRUE(at::equal(ours.codes, plain.codes)) << weight.sizes();
      EXPECT_TRUE(at::equal(ours.scale, plain.scale)) << weight.sizes();
    }
  }
}

TEST(QuantizeTensor, HasTheScaleOfTheLargestRow) {
  const at::Tensor weight = at::tensor({1.0F, -2.54F, 0.0F, 0.0F}).view({2, 2});
  const Int8Channel q = quantize_tensor(weight, Int8Grid::kRow);
  EXPECT_TRUE(at::allclose(q.scale, at::full({2}, 0.02F)));
  EXPECT_EQ(quantize_tensor(at::zeros({2, 2}), Int8Grid::kRow).scale[0].item<float>(), 1.0F);
}

TEST(ErrorOf, IsThatOfACaseWorkedByHand) {
  const at::Tensor weight = at::tensor({3.0F, 4.0F}).view({1, 2});
  const Int8Channel stored{at::tensor({3, 4}, at::kChar).view({1, 2}), at::tensor({1.1F})};
  const QuantizationError error = error_of(weight, stored);
  EXPECT_NEAR(error.sqnr_db, 20, 1e-4);  // the error is a tenth of the weight
  EXPECT_NEAR(error.max_error, 0.4, 1e-6);
  EXPECT_EQ(error_of(weight, Dense{weight}).sqnr_db, INFINITY);
}

}  // namespace
}  // namespace mcompress
