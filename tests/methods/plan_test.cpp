#include "mcompress/methods/plan.h"

#include <gtest/gtest.h>

#include "mcompress/base/error.h"

namespace mcompress {
namespace {

const int kTied = 0, kOwn = 0, kConv = 0;

std::vector<Decision> three_layers() {
  return {{"embed", LayerKind::kEmbedding, "", {&kTied, {}, {}}, 40},
          {"head", LayerKind::kLinear, "", {&kTied, {}, {}}, 40},
          {"fc", LayerKind::kLinear, "", {&kOwn, {}, {}}, 40},
          {"conv", LayerKind::kConv2d, "", {&kConv, {}, {}}, 40}};
}

std::string no_convolutions(LayerKind kind) { return kind == LayerKind::kConv2d ? "no convolutions" : ""; }

TEST(Decide, KeepsWhatTheSelectionLeavesOut) {
  auto plan = three_layers();
  decide(plan, {{"head", "fc", "embed"}, {"^fc$"}}, no_convolutions, "m");
  EXPECT_EQ(plan[0].reason, "");
  EXPECT_EQ(plan[1].reason, "");
  EXPECT_EQ(plan[2].reason, "matched by --ignore");
  EXPECT_EQ(plan[3].reason, "not matched by --layer");
}

TEST(Decide, KeepsASharedWeightForAllItsLayers) {
  auto plan = three_layers();
  decide(plan, {{}, {"embed"}}, no_convolutions, "m");
  EXPECT_EQ(plan[1].reason, "shares its weight with 'embed', which is kept");
  EXPECT_EQ(plan[2].reason, "");
}

TEST(Decide, NamesEachReasonOnceWhereNothingIsLeft) {
  auto plan = three_layers();
  try {
    decide(plan, {{}, {"embed", "head", "fc"}}, no_convolutions, "m.pt");
    FAIL();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData);
    EXPECT_STREQ(
        failure.what(),
        "'m.pt' has nothing to compress: 'embed' and 2 more: matched by --ignore; 'conv': no convolutions");
  }
}

TEST(Decide, RefusesAnExpressionThatMatchesNothing) {
  auto plan = three_layers();
  EXPECT_THROW(decide(plan, {{"fc2"}, {}}, no_convolutions, "m"), Error);
}

}  // namespace
}  // namespace mcompress
