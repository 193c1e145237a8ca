#include "mcompress/methods/dynamic.h"

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

}  // namespace
}  // namespace mcompress
