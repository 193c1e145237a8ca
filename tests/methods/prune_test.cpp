#include "mcompress/methods/prune.h"

#include <cmath>
#include <map>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/input_norm.h"
#include "mcompress/model/checkpoint.h"

namespace mcompress {
namespace {

PrunableWeight weight_of(const std::string& name, const at::Tensor& tensor) {
  const at::Tensor matrix = tensor.flatten(1);
  return {name,
          matrix.size(0),
          matrix.size(1),
          [matrix](int64_t begin, int64_t end) { return matrix.slice(0, begin, end); },
          {},
          {}};
}

at::Tensor whole_mask(const RowMask& mask, int64_t rows) {
  std::vector<at::Tensor> parts;
  for (int64_t row = 0; row < rows; row += 3) parts.push_back(mask(row, std::min(row + 3, rows)));
  return at::cat(parts);
}

at::Tensor mask_of(const at::Tensor& tensor, const Amount& amount, const PruneOptions& options = {}) {
  return whole_mask(choose_zeros({weight_of("w", tensor)}, amount, options).front(), tensor.size(0));
}

Amount amount_of(const std::string& text) {
  if (text.find('.') != std::string::npos) return {std::stod(text), {}};
  return {0, std::stoll(text)};
}

// What make_prune_masks.py stored: weights, and the masks of torch.nn.utils.prune.
class TorchMasks : public ::testing::Test {
 protected:
  TorchMasks()
      : file_(read_checkpoint(std::string(MCOMPRESS_TESTS_DIR) + "/data/prune_masks.safetensors",
                              ModelFormat::kSafetensors)) {
    for (const Array& array : file_.arrays) tensors_[array.name] = rows_of(array, 0, array.shape[0]);
  }

  std::vector<std::string> amounts(const std::string& kind) const {
    std::vector<std::string> found;
    const std::string prefix = "w0." + kind + ".";
    for (const auto& [name, tensor] : tensors_) {
      if (name.starts_with(prefix)) found.push_back(name.substr(prefix.size()));
    }
    return found;
  }

  CheckpointFiles file_;
  std::map<std::string, at::Tensor> tensors_;
};

TEST_F(TorchMasks, OfSingleLayersAreOurs) {
  int compared = 0;
  for (const std::string& amount : amounts("layer")) {
    for (int index = 0; index < 20; ++index) {
      const std::string name = fmt::format("w{}", index);
      const auto expected = tensors_.find(name + ".layer." + amount);
      if (expected == tensors_.end()) continue;
      const at::Tensor mask = mask_of(tensors_.at(name + ".weight"), amount_of(amount));
      EXPECT_TRUE(at::equal(mask, expected->second.flatten(1).to(at::kBool))) << name << " " << amount;
      ++compared;
    }
  }
  EXPECT_GE(compared, 130);
}

TEST_F(TorchMasks, OfAllLayersAreOurs) {
  std::vector<PrunableWeight> weights;
  for (int index = 0; index < 20; ++index) {
    const std::string name = fmt::format("w{}", index);
    weights.push_back(weight_of(name, tensors_.at(name + ".weight")));
  }
  EXPECT_EQ(amounts("global").size(), 7);
  for (const std::string& amount : amounts("global")) {
    const auto masks = choose_zeros(weights, amount_of(amount), {});
    for (size_t index = 0; index < weights.size(); ++index) {
      const at::Tensor expected = tensors_.at(fmt::format("w{}.global.{}", index, amount));
      EXPECT_TRUE(at::equal(whole_mask(masks[index], weights[index].rows), expected.flatten(1).to(at::kBool)))
          << index << " " << amount;
    }
  }
}

TEST_F(TorchMasks, OfChannelsAreOurs) {
  EXPECT_EQ(amounts("channels").size(), 6);
  for (const std::string& amount : amounts("channels")) {
    for (int index = 0; index < 20; ++index) {
      if (index % 3 != 0) continue;  // equal norms may round apart
      const std::string name = fmt::format("w{}", index);
      PruneOptions options;
      options.pattern = parse_pattern("channels-zero");
      const at::Tensor mask = mask_of(tensors_.at(name + ".weight"), amount_of(amount), options);
      EXPECT_TRUE(at::equal(mask, tensors_.at(name + ".channels." + amount).flatten(1).to(at::kBool)))
          << name << " " << amount;
    }
  }
}

TEST(ChooseZeros, TakesTheSmallestMagnitudes) {
  const at::Tensor weight = at::tensor({3.0F, -1.0F, 0.5F, -4.0F, 2.0F, 0.0F}).view({2, 3});
  const at::Tensor expected = at::tensor({0, 1, 1, 0, 0, 1}).to(at::kBool).view({2, 3});
  EXPECT_TRUE(at::equal(mask_of(weight, {0.5, {}}), expected));
}

TEST(ChooseZeros, IsTheSameForAnyNumberOfThreads) {
  at::manual_seed(3);
  const at::Tensor weight = at::randn({3000, 700}).mul(64).round();  // many ties
  const int threads = at::get_num_threads();
  for (const auto criterion : {Criterion::kL1, Criterion::kRandom, Criterion::kWanda}) {
    const PruneOptions options{criterion, {}, 5};
    at::set_num_threads(1);
    const at::Tensor one = mask_of(weight, {0.4, {}}, options);
    at::set_num_threads(4);
    EXPECT_TRUE(at::equal(mask_of(weight, {0.4, {}}, options), one));
    EXPECT_EQ(one.sum().item<int64_t>(), 840'000);
  }
  at::set_num_threads(threads);
}

TEST(ChooseZeros, TakesTheFirstOfEqualScoresWhereTopkWouldNeedTooMuch) {
  const at::Tensor weight = at::ones({4100, 4100});
  const PrunableWeight half = weight_of("half", weight.slice(0, 0, 2000));
  const PrunableWeight rest = weight_of("rest", weight.slice(0, 2000, 4100));
  const auto masks = choose_zeros({half, rest}, {0, 2000 * 4100 + 5}, {});
  EXPECT_TRUE(masks[0](0, 2000).all().item<bool>());
  const at::Tensor second = masks[1](0, 2100);
  EXPECT_EQ(second.sum().item<int64_t>(), 5);
  EXPECT_TRUE(second[0].slice(0, 0, 5).all().item<bool>());
}

TEST(ChooseZeros, LeavesTwoOfEveryFour) {
  at::manual_seed(4);
  const at::Tensor weight = at::randn({6, 16});
  PruneOptions options;
  options.pattern = parse_pattern("2:4");
  const at::Tensor mask = mask_of(weight, {}, options);
  EXPECT_TRUE((mask.view({-1, 4}).sum(1) == 2).all().item<bool>());
  const at::Tensor magnitudes = weight.abs().view({-1, 4});
  const at::Tensor zeroed = magnitudes.masked_fill(mask.view({-1, 4}).logical_not(), 0).amax(1);
  const at::Tensor kept = magnitudes.masked_fill(mask.view({-1, 4}), INFINITY).amin(1);
  EXPECT_TRUE((zeroed <= kept).all().item<bool>());
}

TEST(ChooseZeros, WandaWeighsByTheInputInEachRow) {
  PrunableWeight weight = weight_of("w", at::tensor({1.0F, 2.0F, 3.0F, 30.0F, 20.0F, 10.0F}).view({2, 3}));
  weight.input_norm = at::tensor({10.0F, 1.0F, 1.0F}).view({1, 3});
  const at::Tensor by_row = choose_zeros({weight}, {1.0 / 3, {}}, {Criterion::kWanda, {}, 0}).front()(0, 2);
  EXPECT_TRUE(at::equal(by_row, at::tensor({0, 1, 0, 0, 0, 1}).to(at::kBool).view({2, 3})));
  const at::Tensor in_all =
      choose_zeros({weight}, {1.0 / 3, {}}, {Criterion::kActivation, {}, 0}).front()(0, 2);
  EXPECT_TRUE(at::equal(in_all, at::tensor({0, 1, 1, 0, 0, 0}).to(at::kBool).view({2, 3})));
}

TEST(ChooseZeros, RefusesInfinityTimesADeadInput) {
  PrunableWeight weight = weight_of("w", at::tensor({1.0F, INFINITY, -INFINITY, 2.0F}).view({2, 2}));
  weight.input_norm = at::zeros({1, 2});
  for (const Criterion criterion : {Criterion::kActivation, Criterion::kWanda})
    EXPECT_THROW(choose_zeros({weight}, {0.5, {}}, {criterion, {}, 0}), Error);
}

TEST(InputNorm, SumsOverBatchesPlacesAndUses) {
  const Layer linear{"fc", LayerKind::kLinear, at::zeros({3, 2}), {}, {}, {}};
  InputNorm norm(linear);
  EXPECT_FALSE(norm.norm().defined());
  norm.add(at::tensor({3.0F, 0.0F}));                              // one sample without a batch
  norm.add(at::tensor({4.0F, 1.0F, 0.0F, 1.0F}).view({1, 2, 2}));  // a batch of sequences
  EXPECT_TRUE(at::allclose(norm.norm(), at::tensor({5.0F, std::sqrt(2.0F)}).view({1, 2})));
  EXPECT_THROW(norm.add(at::zeros({2, 3})), Error);
  EXPECT_THROW(norm.add(at::full({2, 2}, NAN)), Error);

  const Layer grouped{"conv", LayerKind::kConv2d, at::zeros({4, 1, 1, 2}), {}, {}, {}};
  InputNorm channels(grouped);
  channels.add(at::tensor({1.0F, 2.0F, 2.0F, 0.0F, 3.0F, 4.0F}).view({1, 2, 1, 3}));
  EXPECT_TRUE(at::allclose(channels.norm(), at::tensor({3.0F, 3.0F, 5.0F, 5.0F}).view({2, 2})));
  EXPECT_THROW(channels.add(at::zeros({1, 4, 1, 3})), Error);  // other groups than before
}

TEST(ChooseZeros, RefusesWhatItCannotDo) {
  const at::Tensor weight = at::ones({2, 6});
  PruneOptions four;
  four.pattern = parse_pattern("2:4");
  EXPECT_THROW(mask_of(weight, {}, four), Error);
  EXPECT_THROW(mask_of(weight, {0, 13}), Error);
  const at::Tensor nan = at::full({2, 8}, NAN);
  for (const char* pattern : {"unstructured", "2:4", "channels-zero"}) {
    PruneOptions options;
    options.pattern = parse_pattern(pattern);
    EXPECT_THROW(mask_of(nan, {0.5, {}}, options), Error) << pattern;
  }
  for (const char* text : {"", "4:2", "0:4", "4:4", "2:", ":4", "2:4x", "-1:4", "channels"})
    EXPECT_THROW(parse_pattern(text), Error) << text;
}

}  // namespace
}  // namespace mcompress
