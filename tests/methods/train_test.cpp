#include <filesystem>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "../src/methods/train/layer_gradient.h"
#include "../src/methods/train/optimizer.h"
#include "mcompress/base/error.h"
#include "mcompress/methods/trainer.h"
#include "test_files.h"

namespace mcompress {
namespace {

using testing::TemporaryFolder;

TEST(RateAt, FollowsWarmUpAndSchedule) {
  TrainOptions options{.rate = 0.8, .schedule = Schedule::kConstant, .warmup_steps = 4, .epochs = 5};
  EXPECT_DOUBLE_EQ(rate_at(options, 0, 10), 0.2);
  EXPECT_DOUBLE_EQ(rate_at(options, 3, 10), 0.8);
  EXPECT_DOUBLE_EQ(rate_at(options, 49, 10), 0.8);
  options.schedule = Schedule::kCosine;
  EXPECT_DOUBLE_EQ(rate_at(options, 25, 10), 0.4);
  EXPECT_LT(rate_at(options, 49, 10), 0.001);
  options.schedule = Schedule::kStep;
  options.step_epochs = 2;
  options.step_factor = 0.5;
  EXPECT_DOUBLE_EQ(rate_at(options, 19, 10), 0.8);
  EXPECT_DOUBLE_EQ(rate_at(options, 20, 10), 0.4);
  EXPECT_DOUBLE_EQ(rate_at(options, 40, 10), 0.2);
}

TEST(Optimizer, StepsAreThoseOfACaseWorkedByHand) {
  // SGD: g = 2 w + decay w; v = m v + g; w -= rate v.
  Trainable w{"w", at::full({1}, 1.0, at::kFloat).requires_grad_(true)};
  Optimizer sgd({w}, {.rate = 0.1, .momentum = 0.5, .weight_decay = 1});
  for (int step = 0; step < 2; ++step) {
    sgd.clear_gradients();
    w.value.square().sum().backward();
    sgd.step(0.1);
  }
  EXPECT_NEAR(w.value.item<double>(), 0.7 - 0.1 * (0.5 * 3 + 2.1), 1e-6);  // 1 -> 0.7 -> 0.34
  // AdamW: the first step is the rate, after the decay.
  Trainable a{"a", at::full({1}, 2.0, at::kFloat).requires_grad_(true)};
  Optimizer adam({a}, {.optimizer = OptimizerKind::kAdamW, .weight_decay = 0.5});
  adam.clear_gradients();
  a.value.square().sum().backward();
  adam.step(0.1);
  EXPECT_NEAR(a.value.item<double>(), 2 * (1 - 0.05) - 0.1, 1e-6);
  adam.clear_gradients();
  a.value.square().sum().backward();
  adam.clip(0.25);
  EXPECT_NEAR(a.value.grad().item<double>(), 0.25, 1e-6);
}

struct Gradient {
  at::Tensor input, weight, bias;
};

template <typename Apply>
Gradient gradient_of(const Layer& layer, const at::Tensor& input, Apply apply) {
  const at::Tensor x = input.detach().clone().requires_grad_(true);
  const at::Tensor w = layer.weight.detach().clone().requires_grad_(true);
  const at::Tensor b = layer.bias.detach().clone().requires_grad_(true);
  apply(layer, x, w, b).sin().sum().backward();
  return {x.grad(), w.grad(), b.grad()};
}

std::vector<std::pair<Layer, at::Tensor>> trained_layers() {
  at::manual_seed(4);
  Layer linear{"linear", LayerKind::kLinear, at::randn({5, 7}), at::randn({5}), {"forward"}, ""};
  Layer conv{"conv", LayerKind::kConv2d, at::randn({6, 2, 3, 3}), at::randn({6}), {"forward"}, ""};
  conv.convolution = Convolution{{2, 1}, {1, 1}, {1, 2}, 2, {1, 1, 1, 1}, "reflect"};
  Layer conv1d{"conv1d", LayerKind::kConv1d, at::randn({4, 3, 3}), at::randn({4}), {"forward"}, ""};
  conv1d.convolution = Convolution{{1}, {1}, {1}, 1, {}, "constant"};
  Layer first{"first", LayerKind::kConv2d, at::randn({4, 1, 3, 3}), at::randn({4}), {"forward"}, ""};
  first.convolution = Convolution{{1, 1}, {0, 0}, {1, 1}, 1, {}, "constant"};
  return {{linear, at::randn({13, 2, 7})},
          {first, at::randn({32, 1, 12, 12})},
          {conv, at::randn({11, 4, 8, 9})},
          {conv1d, at::randn({3, 3, 20})}};
}

TEST(ApplyLayerForTraining, HasTheGradientsOfAutogradForAnyThreadCount) {
  for (const auto& [layer, input] : trained_layers()) {
    const Gradient exact = gradient_of(layer, input, apply_layer);
    std::vector<Gradient> ours;
    for (const int threads : {1, 2}) {
      at::set_num_threads(threads);
      ours.push_back(gradient_of(layer, input, apply_layer_for_training));
    }
    EXPECT_TRUE(at::allclose(ours[0].input, exact.input, 1e-4, 1e-5)) << layer.name;
    EXPECT_TRUE(at::allclose(ours[0].weight, exact.weight, 1e-4, 1e-5)) << layer.name;
    EXPECT_TRUE(at::allclose(ours[0].bias, exact.bias, 1e-4, 1e-5)) << layer.name;
    EXPECT_TRUE(at::equal(ours[0].weight, ours[1].weight)) << layer.name;
    EXPECT_TRUE(at::equal(ours[0].bias, ours[1].bias)) << layer.name;
  }
}

TEST(LsqRound, GradientsAreThoseOfACaseWorkedByHand) {
  // s = 0.5, codes -2..1: x / s = 0.6 -> 1, -0.8 -> -1 (inside), 3 -> 1 (above), -5 -> -2 (below).
  const at::Tensor x = at::tensor({0.3F, -0.4F, 1.5F, -2.5F}).view({1, 4}).requires_grad_(true);
  const at::Tensor scale = at::full({1}, 0.5, at::kFloat).requires_grad_(true);
  const at::Tensor y = lsq_round(x, scale, 0, -2, 1);
  EXPECT_TRUE(at::allclose(y, at::tensor({0.5F, -0.5F, 0.5F, -1.0F}).view({1, 4})));
  y.sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::tensor({1.0F, 1.0F, 0.0F, 0.0F}).view({1, 4})));
  // (1 - 0.6) + (-1 + 0.8) + 1 - 2, times 1 / sqrt(4 * 1).
  EXPECT_NEAR(scale.grad().item<double>(), (0.4 - 0.2 + 1 - 2) / 2, 1e-6);
}

// A linear classifier of three classes on 40 rows.
struct Classifier {
  at::Tensor weight = at::zeros({3, 4}).requires_grad_(true), bias = at::zeros({3}).requires_grad_(true);
  at::Tensor seen = at::zeros({1});
  Dataset data;
  TrainTask task;

  Classifier() {
    at::manual_seed(5);
    data.inputs = at::randn({40, 4});
    data.labels =
        (data.inputs.select(1, 0) > 0).to(at::kLong) + (data.inputs.select(1, 1) > 0.5).to(at::kLong);
    task.parameters = {{"weight", weight}, {"bias", bias, false}};
    task.buffers = {{"seen", seen}};
    task.forward = [this](const at::Tensor& x) {
      seen.add_(1);
      return at::dropout(at::linear(x, weight, bias), 0.1, true);
    };
    task.score = [this] {
      const at::NoGradGuard guard;
      const at::Tensor right = at::linear(data.inputs, weight, bias).argmax(1) == data.labels;
      return right.to(at::kDouble).mean().item<double>();
    };
  }
};

TEST(Train, LearnsAndKeepsTheBestEpoch) {
  const TemporaryFolder folder;
  Classifier model;
  const TrainOptions options{.rate = 0.5, .epochs = 20, .batch_size = 8, .patience = 6, .seed = 7};
  const TrainResult result = train(model.task, model.data, options, {folder / "c", false, "f"});
  ASSERT_FALSE(result.epochs.empty());
  EXPECT_LT(result.epochs.back().loss, result.epochs[1].loss);
  double best = 0;
  for (const EpochRecord& epoch : result.epochs) best = std::max(best, *epoch.score);
  EXPECT_EQ(model.task.score(), best);
  EXPECT_EQ(*result.epochs[static_cast<size_t>(result.best_epoch)].score, best);
  EXPECT_EQ(result.stopped.empty(), result.epochs.size() == 21U);
  EXPECT_TRUE(std::filesystem::exists(folder / "c"));
}

TEST(Train, AResumedRunEndsAsAnUnbrokenOne) {
  for (const OptimizerKind optimizer : {OptimizerKind::kSgd, OptimizerKind::kAdamW}) {
    const TemporaryFolder folder;
    const TrainOptions options{.optimizer = optimizer, .rate = 0.05, .epochs = 4, .batch_size = 8, .seed = 7};
    Classifier whole, broken, resumed;
    train(whole.task, whole.data, options, {folder / "w", false, "f"});
    int steps = 0;
    const auto forward = broken.task.forward;
    broken.task.forward = [&](const at::Tensor& x) {
      if (++steps == 12) throw std::runtime_error("killed");
      return forward(x);
    };
    EXPECT_THROW(train(broken.task, broken.data, options, {folder / "c", false, "f"}), std::runtime_error);
    const TrainResult result = train(resumed.task, resumed.data, options, {folder / "c", true, "f"});
    EXPECT_EQ(result.resumed_at, 10);  // after two epochs of five steps
    EXPECT_EQ(result.epochs.size(), 5U);
    EXPECT_TRUE(at::equal(resumed.weight, whole.weight));
    EXPECT_TRUE(at::equal(resumed.bias, whole.bias));
    EXPECT_TRUE(at::equal(resumed.seen, whole.seen));
  }
}

TEST(Train, RefusesAForeignCheckpointAndNamesADivergingStep) {
  const TemporaryFolder folder;
  const TrainOptions options{.rate = 0.05, .epochs = 2, .batch_size = 8};
  Classifier model;
  const auto forward = model.task.forward;
  int steps = 0;
  model.task.forward = [&](const at::Tensor& x) { return ++steps == 8 ? forward(x) * NAN : forward(x); };
  model.task.find_non_finite = [](const at::Tensor&) { return "fc1"; };
  try {
    train(model.task, model.data, options, {folder / "c", false, "f"});
    FAIL();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData);
    const std::string text = failure.what();
    EXPECT_NE(text.find("step 8 (epoch 2), first in layer 'fc1'"), std::string::npos) << text;
  }
  model.task.forward = forward;
  try {
    train(model.task, model.data, options, {folder / "c", true, "another"});
    FAIL();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kConfig);
  }
}

TEST(Train, RefusesACheckpointOfWhichAByteChanged) {
  const TemporaryFolder folder;
  const TrainOptions options{.rate = 0.05, .epochs = 1, .batch_size = 8};
  Classifier model;
  train(model.task, model.data, options, {folder / "c", false, "f"});
  const auto size = static_cast<int64_t>(std::filesystem::file_size(folder / "c"));
  // In the last array, and in a text of the header: the epoch's seconds.
  const std::string whole = testing::read_file(folder / "c");
  for (const int64_t place : {size - 2, static_cast<int64_t>(whole.find("\"loss_sum\":\"") + 12)}) {
    std::string damaged = whole;
    damaged[static_cast<size_t>(place)] ^= 1;
    testing::write_file(folder / "c", damaged);
    try {
      train(model.task, model.data, options, {folder / "c", true, "f"});
      FAIL() << "a changed byte at " << place;
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData);
      EXPECT_NE(std::string(failure.what()).find("is damaged"), std::string::npos) << failure.what();
    }
  }
}

TEST(Train, CallsAnEpochWithoutAScoreADivergence) {
  const TemporaryFolder folder;
  Classifier model;
  int scored = 0;
  model.task.score = [&] { return ++scored == 2 ? throw bad_data("the outputs hold NaN") : 0.5; };
  try {
    train(model.task, model.data, {.rate = 0.05, .epochs = 2, .batch_size = 8}, {folder / "c", false, "f"});
    FAIL();
  } catch (const Error& failure) {
    EXPECT_NE(std::string(failure.what()).find("training diverged in epoch 1: the outputs hold NaN"),
              std::string::npos)
        << failure.what();
  }
}

}  // namespace
}  // namespace mcompress
