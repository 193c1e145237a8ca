#include "mcompress/methods/observer.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"

namespace mcompress {
namespace {

Observer watch(const std::vector<at::Tensor>& batches) {
  Observer observer("fc");
  for (const at::Tensor& batch : batches) observer.add(batch);
  return observer;
}

double error_of(const at::Tensor& values, const Range& range, int bits) {
  return (round_input(grid_of(range, bits), values) - values).square().sum().item<double>();
}

TEST(GridOf, PutsZeroOnACodeAndReachesBothEnds) {
  const InputGrid grid = grid_of({-1, 3}, 8);
  EXPECT_DOUBLE_EQ(grid.scale, 4.0 / 255);
  EXPECT_EQ(grid.zero_point, 64);  // 1 / (4 / 255) = 63.75
  EXPECT_EQ(grid_of({0, 3}, 4).zero_point, 0);
  EXPECT_EQ(grid_of({-3, 0}, 4).zero_point, 15);
  EXPECT_GT(grid_of({0, 0}, 8).scale, 0);  // a layer that is given zeros alone
}

TEST(RoundInput, RoundsHalfUpAndStaysOnTheGrid) {
  const InputGrid grid{.scale = 0.5, .zero_point = 2, .bits = 3};
  const at::Tensor x = at::tensor({-9.0, -0.25, 0.0, 0.25, 0.74, 0.76, 9.0}, at::kFloat);
  EXPECT_TRUE(at::equal(round_input(grid, x), at::tensor({-1.0, 0.0, 0.0, 0.5, 0.5, 1.0, 2.5}, at::kFloat)));
}

TEST(Observer, MinMaxAndMovingAverageAreThoseOfACaseWorkedByHand) {
  const Observer seen = watch({at::tensor({-1.0F, 2.0F}), at::tensor({0.5F, 4.0F})});
  const Range all = seen.range(ObserverKind::kMinMax, 8, 0);
  EXPECT_EQ(all.low, -1);
  EXPECT_EQ(all.high, 4);
  const Range average = seen.range(ObserverKind::kMovingAverage, 8, 0);
  EXPECT_NEAR(average.low, -0.99, 1e-9);  // -1 + 0.01 * (0 + 1)
  EXPECT_NEAR(average.high, 2.02, 1e-9);
}

TEST(Observer, PercentileLeavesOutItsShareOnEachSide) {
  at::Tensor values = at::arange(-5000, 5000, at::kFloat) / 1000;
  const Range range = watch({values}).range(ObserverKind::kPercentile, 8, 99);
  EXPECT_NEAR(range.low, -4.9, 0.01);
  EXPECT_NEAR(range.high, 4.9, 0.01);
}

TEST(Observer, SearchedRangesHaveLessErrorThanTheWholeRange) {
  at::manual_seed(1);
  for (const bool positive : {true, false}) {
    at::Tensor values = at::randn({20000});
    if (positive) values = values.relu();
    values[7] = 40;  // an outlier
    const Observer seen = watch({values});
    for (const int bits : {4, 8}) {
      const double whole = error_of(values, seen.range(ObserverKind::kMinMax, bits, 0), bits);
      const double mse = error_of(values, seen.range(ObserverKind::kMse, bits, 0), bits);
      const double histogram = error_of(values, seen.range(ObserverKind::kHistogram, bits, 0), bits);
      EXPECT_LT(mse, whole * (bits == 4 ? 0.5 : 1.0001)) << bits << positive;
      EXPECT_LE(histogram, whole * 1.0001) << bits << positive;
      EXPECT_LE(mse, histogram * 1.05) << bits << positive;
    }
  }
}

TEST(Observer, IsTheSameHoweverTheValuesComeAndForAnyThreadCount) {
  at::manual_seed(2);
  const at::Tensor values = at::randn({300000}) * 3;
  std::vector<Range> ranges;
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    for (const int64_t pieces : {1, 7})
      ranges.push_back(watch(at::tensor_split(values, pieces)).range(ObserverKind::kMse, 6, 0));
  }
  for (const Range& range : ranges) {
    EXPECT_EQ(range.low, ranges[0].low);
    EXPECT_EQ(range.high, ranges[0].high);
  }
}

TEST(Observer, NamesTheLayerThatIsGivenNaN) {
  for (const float bad : {NAN, INFINITY}) {
    Observer observer("fc");
    try {
      observer.add(at::tensor({1.0F, bad}));
      FAIL();
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData);
      EXPECT_NE(std::string(failure.what()).find("'fc'"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace mcompress
