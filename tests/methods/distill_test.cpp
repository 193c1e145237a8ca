#include "mcompress/methods/distill.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/methods/teacher.h"
#include "mcompress/model/checkpoint.h"
#include "test_files.h"

namespace mcompress {
namespace {

using testing::TemporaryFolder;

std::map<std::string, at::Tensor> stored_losses() {
  const std::string path = std::string(MCOMPRESS_TESTS_DIR) + "/data/distill_losses.safetensors";
  const auto file = std::make_shared<const MappedFile>(path);
  std::map<std::string, at::Tensor> tensors;
  for (const Array& array : read_safetensors(file->bytes(), path).arrays)
    tensors[array.name] = map_rows(array, file);
  return tensors;
}

TEST(DistillLoss, AndItsGradientAreThoseOfPyTorch) {
  const auto stored = stored_losses();
  const std::vector<std::pair<std::string, DistillLoss>> losses = {{"kl", DistillLoss::kKl},
                                                                   {"reverse-kl", DistillLoss::kReverseKl},
                                                                   {"jsd", DistillLoss::kJsd},
                                                                   {"mse-logits", DistillLoss::kMseLogits}};
  for (const auto& [name, loss] : losses) {
    for (const auto& [t, alpha] : {std::pair(4.0, 0.5), std::pair(1.0, 1.0), std::pair(2.0, 0.9)}) {
      const std::string key = fmt::format("{} {:g} {:g}", name, t, alpha);
      const at::Tensor student = stored.at("student").clone().requires_grad_(true);
      const at::Tensor value =
          distill_loss(student, {stored.at("teacher"), {}}, stored.at("labels"), {loss, t, alpha, 0.1});
      value.backward();
      const auto exact = stored.at(key + ".loss").item<double>();
      EXPECT_NEAR(value.item<double>() / exact, 1, 1e-6) << key;
      const at::Tensor gradient = stored.at(key + ".gradient");
      const double off = (student.grad() - gradient).abs().max().item<double>();
      EXPECT_LE(off, 1e-6 * gradient.abs().max().item<double>()) << key;
    }
  }
}

TEST(DistillLoss, IsThatOfACaseWorkedByHand) {
  // T = 2: p = softmax(ln 9, 0) = (0.9, 0.1), q = softmax(0, 0) = (0.5, 0.5).
  const at::Tensor teacher = at::tensor({2 * std::log(9.0F), 0.0F}).view({1, 2});
  const at::Tensor student = at::zeros({1, 2}).requires_grad_(true);
  const at::Tensor loss = soft_loss(student, {teacher, {}}, {DistillLoss::kKl, 2});
  EXPECT_NEAR(loss.item<double>(), 4 * (0.9 * std::log(0.9 / 0.5) + 0.1 * std::log(0.1 / 0.5)), 1e-6);
  loss.backward();  // T (q - p)
  EXPECT_NEAR(student.grad()[0][0].item<double>(), 2 * (0.5 - 0.9), 1e-6);
}

TEST(DistillLoss, DoesNotChangeWithTheBatchNorWithTopKOfAllClasses) {
  at::manual_seed(3);
  const at::Tensor teacher = at::randn({6, 9}), student = at::randn({6, 9});
  for (const DistillLoss loss :
       {DistillLoss::kKl, DistillLoss::kReverseKl, DistillLoss::kJsd, DistillLoss::kMseLogits}) {
    const DistillOptions options{loss, 3};
    const auto once = soft_loss(student, {teacher, {}}, options).item<double>();
    const auto twice = soft_loss(at::cat({student, student}), {at::cat({teacher, teacher}), {}}, options);
    EXPECT_NEAR(once, twice.item<double>(), 1e-6);
    EXPECT_NEAR(soft_loss(teacher, {teacher, {}}, options).item<double>(), 0, 1e-6);
    EXPECT_GT(once, 0.01);
  }
  const auto [scores, classes] = teacher.topk(9, 1);
  const DistillOptions kl{DistillLoss::kKl, 3};
  EXPECT_NEAR(soft_loss(student, {scores, classes}, kl).item<double>(),
              soft_loss(student, {teacher, {}}, kl).item<double>(), 1e-6);
  EXPECT_THROW(distill_loss(student.slice(1, 0, 8), {teacher, {}}, {}, {DistillLoss::kKl, 3, 1}), Error);
}

TEST(Hints, AreThoseOfPyTorchAndLearnAProjectionWhereWidthsDiffer) {
  const auto stored = stored_losses();
  const at::Tensor teacher = stored.at("hint.teacher"), student = stored.at("hint.student");
  const Hints attention({HintKind::kAttention, {"a"}, {"b"}}, {teacher}, {student}, 1);
  EXPECT_NEAR(attention.loss({teacher}, {student}).item<double>(), stored.at("hint.at").item<double>(), 1e-7);
  EXPECT_TRUE(attention.parameters().empty());
  const at::Tensor same = teacher.slice(1, 0, 4);
  const Hints square({HintKind::kMse, {"a"}, {"b"}, 3}, {same}, {student}, 1);
  EXPECT_NEAR(square.loss({same}, {student}).item<double>() / (3 * stored.at("hint.mse").item<double>()), 1,
              1e-6);
  EXPECT_TRUE(square.parameters().empty());
  const Hints projected({HintKind::kMse, {"a"}, {"b"}}, {teacher}, {student}, 1);
  ASSERT_EQ(projected.parameters().size(), 1U);
  const at::Tensor projection = projected.parameters().front().value;
  EXPECT_EQ(projection.sizes(), at::IntArrayRef({6, 4}));
  projected.loss({teacher}, {student}).backward();
  EXPECT_GT(projection.grad().abs().max().item<double>(), 0);
  const at::Tensor exact = at::einsum("oc,nchw->nohw", {projection, student});
  const double loss = (exact - at::adaptive_avg_pool2d(teacher, {4, 4})).square().mean().item<double>();
  EXPECT_NEAR(projected.loss({teacher}, {student}).item<double>() / loss, 1, 1e-5);
  for (const at::Tensor& wrong :
       {at::randn({4, 4, 4, 4}), at::randn({3, 4}), at::zeros({3, 4, 4, 4}, at::kLong)})
    EXPECT_THROW(Hints({HintKind::kMse, {"a"}, {"b"}}, {teacher}, {wrong}, 1), Error);
  EXPECT_THROW(Hints({HintKind::kMse, {"a"}, {"b"}}, {at::Tensor()}, {student}, 1), Error);
}

// A teacher whose scores tell which row they are of.
at::Tensor row_scores(const at::Tensor& x) { return at::cat({x, -x, 2 * x}, 1); }

std::string message_of(const std::function<void()>& work, Exit code) {
  try {
    work();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), code) << failure.what();
    return failure.what();
  }
  ADD_FAILURE() << "nothing is thrown";
  return "";
}

TEST(TeacherScores, ComeBackByRowAndKnowTheirSource) {
  const TemporaryFolder folder;
  const Dataset data{at::arange(1, 8, at::kFloat).view({7, 1}), {}, {}};
  const TeacherSource source = {{"teacher", "abc"}, {"teacher_path", "big.pt"}, {"data", "def"}};
  const std::string path = folder / "scores";
  write_teacher_scores(path, row_scores, data, 3, 0, source);
  const TeacherScores all = read_teacher_scores(path, source, 7, 3);
  EXPECT_TRUE(at::equal(all.at(at::tensor({6, 0}, at::kLong)).scores,
                        at::tensor({7.0F, -7.0F, 14.0F, 1.0F, -1.0F, 2.0F}).view({2, 3})));
  write_teacher_scores(path, row_scores, data, 3, 2, source);
  const TeacherBatch two = read_teacher_scores(path, source, 7, 3).at(at::tensor({4}, at::kLong));
  EXPECT_TRUE(at::equal(two.scores, at::tensor({10.0F, 5.0F}).view({1, 2})));
  EXPECT_TRUE(at::equal(two.classes, at::tensor({2, 0}, at::kLong).view({1, 2})));

  TeacherSource other = source;
  other["teacher"] = "xyz";
  const std::string foreign = message_of([&] { read_teacher_scores(path, other, 7, 3); }, Exit::kConfig);
  EXPECT_NE(foreign.find("of another teacher: 'big.pt' (abc), not xyz"), std::string::npos) << foreign;
  message_of([&] { read_teacher_scores(path, source, 8, 3); }, Exit::kBadData);
  message_of([&] { read_teacher_scores(path, source, 7, 2); }, Exit::kBadData);
  const std::string bytes = testing::read_file(path);
  for (const size_t place : {bytes.size() - 1, bytes.size() - 70, bytes.size() / 2, size_t{3}}) {
    std::string broken = bytes;
    broken[place] = static_cast<char>(broken[place] ^ 1);
    testing::write_file(path, broken);
    EXPECT_THROW(read_teacher_scores(path, source, 7, 3), Error) << place;
  }
  testing::write_file(path, bytes.substr(0, bytes.size() - 10));
  message_of([&] { read_teacher_scores(path, source, 7, 3); }, Exit::kBadData);
  const auto huge = [](const at::Tensor& x) { return row_scores(x * 1e5); };
  message_of([&] { write_teacher_scores(folder / "h", huge, data, 3, 0, source); }, Exit::kBadData);
  EXPECT_FALSE(std::filesystem::exists(folder / "h"));
}

// Zeros that pruning left outlive momentum, weight decay and a resumed run.
TEST(Train, ZerosStayZero) {
  for (const OptimizerKind optimizer : {OptimizerKind::kSgd, OptimizerKind::kAdamW}) {
    const TemporaryFolder folder;
    at::manual_seed(5);
    Dataset data{at::randn({40, 4}), at::randint(3, {40}, at::kLong), {}};
    const at::Tensor weight = at::randn({3, 4}).requires_grad_(true), zeros = at::zeros({3, 4}, at::kBool);
    TrainTask task;
    task.parameters = {{"weight", weight, true, zeros}};
    task.forward = [&](const at::Tensor& x) { return at::linear(x, weight); };
    task.begin_step = [&](int64_t step, int64_t steps) {
      EXPECT_EQ(steps, 10);
      const at::NoGradGuard guard;
      if (step == 4) zeros[1].fill_(1);  // after momentum has gathered
      EXPECT_TRUE(step < 5 || weight[1].count_nonzero().item<int64_t>() == 0) << step;
    };
    const TrainOptions options{
        .optimizer = optimizer, .rate = 0.1, .weight_decay = 0.1, .epochs = 2, .batch_size = 8};
    train(task, data, options, {folder / "c", false, "f"});
    EXPECT_EQ(weight[1].count_nonzero().item<int64_t>(), 0);
    EXPECT_EQ(weight.count_nonzero().item<int64_t>(), 8);
    const at::Tensor kept = weight.detach().clone();
    {
      const at::NoGradGuard guard;
      weight.fill_(1);
      zeros.fill_(0);
    }
    train(task, data, options, {folder / "c", true, "f"});  // which is done already
    EXPECT_TRUE(at::equal(weight, kept));
    EXPECT_EQ(zeros.count_nonzero().item<int64_t>(), 4);
  }
}

TEST(Train, EpochsBeforeTheFirstCompleteOneAreNotKept) {
  const TemporaryFolder folder;
  Dataset data{at::randn({16, 2}), at::zeros({16}, at::kLong), {}};
  const at::Tensor weight = at::randn({2, 2}).requires_grad_(true);
  TrainTask task;
  task.parameters = {{"weight", weight}};
  task.forward = [&](const at::Tensor& x) { return at::linear(x, weight); };
  double next = 1;
  task.score = [&] { return next -= 0.1; };
  task.best_from = 2;
  const TrainResult result = train(task, data, {.epochs = 4, .batch_size = 8}, {folder / "c", false, "f"});
  EXPECT_EQ(result.best_epoch, 2);
  EXPECT_EQ(result.epochs.size(), 5U);
}

}  // namespace
}  // namespace mcompress
