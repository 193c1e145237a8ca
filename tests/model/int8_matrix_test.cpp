#include "mcompress/model/int8_matrix.h"

#include <limits>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "mcompress/methods/hessian.h"

namespace mcompress {
namespace {

at::Tensor normal(at::IntArrayRef shape, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator);
}

// What an Int8Matrix stands for: each 64 values of a row are whole multiples of the largest by 127.
at::Tensor rounded_rows(const at::Tensor& x) {
  std::vector<at::Tensor> shares;
  for (const at::Tensor& share : x.split(64, 1)) {
    const at::Tensor largest = share.abs().amax(1, true);
    shares.push_back((share * (127 / largest)).round().to(at::kDouble) * (largest / 127).to(at::kDouble));
  }
  return at::cat(shares, 1).nan_to_num();
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

struct Shape3 {
  int64_t left, right, depth;
};

class Int8Product : public testing::TestWithParam<Shape3> {};

TEST_P(Int8Product, IsThatOfRoundedValues) {
  const auto [left, right, depth] = GetParam();
  const at::Tensor a = normal({left, depth}, 1), b = normal({right, depth}, 2), bias = normal({right}, 3);
  const at::Tensor result = multiply(int8_rows(a), int8_rows(b), bias);
  EXPECT_LT(distance(result, rounded_rows(a).matmul(rounded_rows(b).t()) + bias), 1e-6);
  EXPECT_LT(distance(result, a.matmul(b.t()) + bias), 0.02);
}

TEST_P(Int8Product, OfColumnsIsThatOfTheTransposedMatrix) {
  const auto [left, right, depth] = GetParam();
  const at::Tensor a = normal({left, depth}, 4), b = normal({depth, right}, 5);
  const at::Tensor columns = multiply(int8_rows(a), int8_columns(b), {}),
                   rows = multiply(int8_rows(a), int8_rows(b.t()), {});
  EXPECT_TRUE(columns.equal(rows));
}

INSTANTIATE_TEST_SUITE_P(Shapes, Int8Product,
                         testing::Values(Shape3{1, 1, 1}, Shape3{64, 64, 64}, Shape3{130, 70, 100},
                                         Shape3{3, 200, 576}, Shape3{65, 63, 129}));

// By hand: the largest, 2, is code 127, and 1 is 63.5, which is 64 since it is halved to even.
TEST(Int8Matrix, RoundsByTheLargestOfAShare) {
  const at::Tensor x = at::tensor({2.0F, 1.0F, -2.0F}).unsqueeze(0);
  const at::Tensor one = at::eye(3);
  const at::Tensor result = multiply(int8_rows(x), int8_rows(one), {});
  const double scale = 2.0 / 127;
  EXPECT_NEAR(result[0][0].item<double>(), 2, 1e-6);
  EXPECT_NEAR(result[0][1].item<double>(), 64 * scale, 1e-6);
  EXPECT_NEAR(result[0][2].item<double>(), -2, 1e-6);
}

TEST(Int8Matrix, HoldsZerosAndTheSmallest) {
  const at::Tensor x = at::stack({at::zeros({80}), at::full({80}, 1e-42), at::full({80}, 1e-20)});
  const at::Tensor result = multiply(int8_rows(x), int8_rows(at::ones({1, 80})), {});
  EXPECT_EQ(result[0].item<float>(), 0);
  EXPECT_EQ(result[1].item<float>(), 0);
  EXPECT_NEAR(result[2].item<double>(), 80e-20, 1e-24);
}

// So that what follows is refused as it is in other types.
TEST(Int8Matrix, PassesOnWhatIsNotFinite) {
  for (const double odd : {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN()}) {
    at::Tensor x = normal({4, 130}, 6);
    x[2][70] = odd;
    const at::Tensor result = multiply(int8_rows(x), int8_rows(normal({5, 130}, 7)), {});
    EXPECT_TRUE(result[1].isfinite().all().item<bool>());
    EXPECT_FALSE(result[2].isfinite().any().item<bool>());
  }
}

TEST(Int8Hessian, IsThatOfRoundedInputsForAnyNumberOfThreads) {
  const at::Tensor x = normal({200, 150}, 8);
  HessianSum sum(150, true), again(150, true), exact(150);
  sum.add(x);
  sum.add(x.slice(0, 0, 90));
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  again.add(x);
  again.add(x.slice(0, 0, 90));
  at::set_num_threads(before);
  exact.add(x);
  exact.add(x.slice(0, 0, 90));
  const auto square = [](const at::Tensor& inputs) {
    const at::Tensor rounded = rounded_rows(inputs.t());
    return rounded.matmul(rounded.t());
  };
  EXPECT_LT(distance(sum.mean() * 290, square(x) + square(x.slice(0, 0, 90))), 1e-6);
  EXPECT_LT(distance(sum.mean(), exact.mean()), 0.01);
  EXPECT_TRUE(sum.mean().equal(again.mean()));
}

}  // namespace
}  // namespace mcompress
