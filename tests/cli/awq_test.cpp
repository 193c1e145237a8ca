#include <algorithm>
#include <cmath>
#include <set>

#include "cli/packed_formats.h"
#include "cli/safetensors_file.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

TEST_F(PackedFormats, LoseLessByAwq) {
  // A channel of the norms that is much larger than the others is what AWQ is for.
  for (const std::string block : {"model.layers.0.", "model.layers.1."}) {
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"}) {
      auto* values = reinterpret_cast<float*>(tensors_.at(block + norm).second.data());
      for (int i = 0; i < 64; i += 16) values[i] = 12;
    }
  }
  write_model();
  const double exact = perplexity("model");
  report_of(weight_only("--group-size 32 --no-mse --asym --format awq", "nearest"));
  const json report = report_of(awq("--asym"));
  EXPECT_EQ(report["output"]["format"], "awq");
  EXPECT_LT(std::abs(perplexity("out") - exact), std::abs(perplexity("nearest") - exact));
  // Two norms and up of each block; v is shared by heads.
  ASSERT_EQ(report["folds"].size(), 6);
  for (const json& fold : report["folds"]) {
    EXPECT_TRUE(fold["made"]) << fold;
    EXPECT_LT(fold["loss"].get<double>(), fold["plain_loss"].get<double>()) << fold;
  }
  for (const json& layer : report["layers"]) {
    if (layer["kind"] != "linear") continue;
    EXPECT_LT(layer["rounding"]["loss"].get<double>(), layer["rounding"]["rounded_loss"].get<double>())
        << layer;
  }
  report_of(awq("--asym --gptq --format dequantized", "both"));
  EXPECT_LT(std::abs(perplexity("both") - exact), std::abs(perplexity("nearest") - exact));
}

// Where each head has its own v, o takes scales from it.
TEST_F(PackedFormats, FoldIntoTheValuesOfHeads) {
  const auto folds_of = [&](const std::string& options) {
    std::set<std::string> made;
    const json report = report_of(awq(options));
    for (const json& fold : report["folds"]) {
      EXPECT_EQ(fold["made"].get<bool>(), fold["loss"].get<double>() < fold["plain_loss"].get<double>())
          << fold;
      made.insert(fold["from"].get<std::string>() + " > " + fold["layers"].back().get<std::string>());
    }
    return made;
  };
  EXPECT_EQ(folds_of("").size(), 6);
  config_["num_key_value_heads"] = 4;
  for (const std::string block : {"model.layers.0.", "model.layers.1."}) {
    for (const char* layer : {"k_proj", "v_proj"}) add(block + "self_attn." + layer, {64, 64}, 0.3F);
  }
  write_model();
  const std::set<std::string> folds = folds_of("");
  EXPECT_EQ(folds.size(), 8);
  EXPECT_TRUE(folds.contains("model.layers.0.self_attn.v_proj > model.layers.0.self_attn.o_proj"));
  EXPECT_TRUE(folds.contains("model.layers.1.mlp.up_proj > model.layers.1.mlp.down_proj"));
  // What is moved cancels out.
  report_of(awq("--bits 8 --format dequantized"));
  EXPECT_NEAR(perplexity("out"), perplexity("model"), 0.005 * perplexity("model"));
}

TEST_F(PackedFormats, FoldNothingThatDoesNotHelp) {
  // Zeros lose nothing.
  for (auto& [name, tensor] : tensors_) {
    if (!contains(name, "layers.0.") || !contains(name, "proj")) continue;
    std::fill(tensor.second.begin(), tensor.second.end(), '\0');
  }
  write_model();
  int made = 0, left = 0;
  const json report = report_of(awq("--asym"));
  for (const json& fold : report["folds"]) {
    const bool helps = fold["loss"].get<double>() < fold["plain_loss"].get<double>();
    EXPECT_EQ(fold["made"], helps) << fold;
    if (contains(fold["from"], "layers.0.")) {
      EXPECT_FALSE(helps) << fold;
    }
    ++(helps ? made : left);
  }
  EXPECT_GE(made, 1);
  EXPECT_GE(left, 3);
}

// AWQ leaves the ranges of q and k as they are.
TEST_F(PackedFormats, NarrowRangesOfOtherLayersThanQueriesAndKeys) {
  report_of(awq("--mse --format safetensors", "narrowed"));
  report_of(awq("--no-mse --format safetensors", "whole"));
  const Tensors narrowed(folder_ / "narrowed/model.safetensors"), whole(folder_ / "whole/model.safetensors");
  const auto same = [&](const std::string& layer) {
    const std::string name = "model.layers.0." + layer + ".weight_scale";
    return narrowed.all.at(name).bytes == whole.all.at(name).bytes;
  };
  for (const char* layer : {"self_attn.q_proj", "self_attn.k_proj"}) EXPECT_TRUE(same(layer)) << layer;
  for (const char* layer : {"self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"})
    EXPECT_FALSE(same(layer)) << layer;
}

TEST_F(PackedFormats, HaveTheSameBytesByAwqForAnyThreads) {
  // The values of the recipe are the defaults.
  const json report = report_of(awq("--threads 1 --config " + recipe("awq.toml"), "one"));
  EXPECT_EQ(report["settings_from"]["scale_grid"], "config");
  report_of(awq("--threads 2", "two"));
  EXPECT_EQ(bytes_of("one"), bytes_of("two"));
}

TEST(AwqProgram, MovesScalesBetweenLinearLayers) {
  if (!std::filesystem::exists(kFashionTest)) GTEST_SKIP() << "needs the Debian package of Fashion-MNIST";
  const TemporaryFolder folder;
  const auto awq = [&](const std::string& name, const std::string& options) {
    return "awq " + shipped(name) + " -o " + (folder / "q.pt") + " --calib-data " + kFashion +
           " --force --nsamples 256 --limit 2000 --eval-data " + kFashion + " " + options;
  };
  const auto top1 = [](const json& report, const char* when) {
    return report["metrics"][when]["top1"]["value"].get<double>();
  };
  const json report = report_of(awq("fashion_mlp.pt", "--bits 3 --group-size -1"));
  ASSERT_FALSE(report["folds"].empty());
  double loss = 0, rounded = 0;
  for (const json& fold : report["folds"]) {
    EXPECT_TRUE(fold["made"].get<bool>()) << fold;
    EXPECT_LT(fold["loss"].get<double>(), fold["plain_loss"].get<double>());
  }
  for (const json& layer : report["layers"]) {
    if (layer["decision"] != "int3") continue;
    loss += layer["rounding"]["loss"].get<double>();
    rounded += layer["rounding"]["rounded_loss"].get<double>();
  }
  EXPECT_LT(loss, 0.95 * rounded);
  EXPECT_GT(top1(report, "after"), top1(report, "before") - 0.05);
  // Of eight bits hardly anything is left to see, so that scales which do not cancel out would be.
  const json exact = report_of(awq("fashion_mlp.pt", "--bits 8 --group-size -1"));
  EXPECT_NEAR(top1(exact, "after"), top1(exact, "before"), 0.002);
  EXPECT_GT(top1(report_of(awq("fashion_cnn.pt", "--group-size -1")), "after"), 0.8);
  // Without a pair only ranges are searched.
  const json alone = report_of(awq("fashion_mlp.pt", "--bits 3 --group-size -1 --layer fc2"));
  EXPECT_TRUE(alone["folds"].empty());
  EXPECT_TRUE(contains(alone["warnings"].dump(), "only ranges of groups are searched"));
  EXPECT_LT(alone["layers"][1]["rounding"]["loss"].get<double>(),
            alone["layers"][1]["rounding"]["rounded_loss"].get<double>());
  expect_all({{awq("fashion_mlp.pt", "--gptq"), 2, "use 'mcompress gptq'"},
              {awq("fashion_mlp.pt", "--lm-head"), 2, "--lm-head is for language models"}},
             folder / "no.pt");
}

}  // namespace
}  // namespace mcompress::testing
