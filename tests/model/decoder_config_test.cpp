#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/model/decoder.h"
#include "model/decoder_files.h"

namespace mcompress {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::answer_to;
using testing::Copy;
using testing::has;
using testing::kDecoders;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

TEST(DecoderConfig, RefusesConfigurationsThatFitNoModel) {
  const auto with = [](const char* key, const json& value) {
    Copy copy;
    copy.config[key] = value;
    return answer_to(copy.path());
  };
  EXPECT_EQ(with("use_cache", false), "");
  EXPECT_TRUE(
      has(with("model_type", "gemma7"),
          "'gemma7' cannot be run; known are gemma, gemma2, gemma3_text, gpt2, llama, mistral, opt, phi3, "
          "qwen2, qwen3, smollm3"));
  EXPECT_TRUE(has(with("num_hidden_layers", int64_t{1} << 31), "whole number from 1 to 10000"));
  EXPECT_TRUE(has(with("num_hidden_layers", 3), "lacks tensor 'model.layers.2.input_layernorm.weight'"));
  EXPECT_TRUE(has(with("num_hidden_layers", 1), "has a tensor 'model.layers.1."));
  EXPECT_TRUE(has(with("hidden_size", 0), "'hidden_size' is 0"));
  EXPECT_TRUE(has(with("hidden_size", "16"), "'hidden_size' is \"16\""));
  EXPECT_TRUE(has(with("hidden_size", nullptr), "'hidden_size' is missing"));
  EXPECT_TRUE(has(with("hidden_size", 18), "has shape"));
  Copy copy;
  copy.config.erase("head_dim");
  copy.config["hidden_size"] = 18;
  EXPECT_TRUE(has(answer_to(copy.path()), "hidden_size 18 is not a multiple of 4 attention heads"));
  EXPECT_TRUE(has(with("num_key_value_heads", 3), "not a multiple of 3 key/value heads"));
  EXPECT_TRUE(
      has(with("num_key_value_heads", 4), "has shape [8, 16], and the configuration asks for [16, 16]"));
  EXPECT_TRUE(has(with("head_dim", 3), "heads of width 3 cannot be rotated"));
  EXPECT_TRUE(has(with("intermediate_size", 16'000'000), "has shape"));
  EXPECT_TRUE(has(with("vocab_size", 449), "asks for [449, 16]"));
  EXPECT_TRUE(has(with("tie_word_embeddings", false), "lacks tensor 'lm_head.weight'"));
  EXPECT_TRUE(has(with("tie_word_embeddings", 1), "should be true or false"));
  EXPECT_TRUE(has(with("rms_norm_eps", -1), "should be a number above 0"));
  EXPECT_TRUE(has(with("hidden_act", "tan"), "hidden_act 'tan' is not known"));
  EXPECT_TRUE(has(with("rope_parameters", json{{"rope_type", "spiral"}}), "rope type 'spiral' is not known"));
  EXPECT_TRUE(has(with("rope_parameters", json{{"rope_type", "linear"}}), "has no factor"));
  EXPECT_TRUE(has(with("rope_parameters", json{{"rope_type", "linear"}, {"factor", 0}}), "'factor' is 0"));
  EXPECT_TRUE(has(with("rope_parameters", json::array()), "is not an object"));
  const auto scaled = [&](const char* type, json more) {
    more.update({{"rope_type", type}, {"factor", 2.0}});
    return with("rope_parameters", more);
  };
  EXPECT_TRUE(has(scaled("llama3", json::object()), "needs low_freq_factor and high_freq_factor"));
  EXPECT_TRUE(has(scaled("llama3", {{"low_freq_factor", 4}, {"high_freq_factor", 4}}),
                  "4 is not below high_freq_factor 4"));
  EXPECT_TRUE(has(scaled("yarn", {{"rope_theta", 1}}), "rope_theta above 1"));
  EXPECT_TRUE(
      has(with("rope_parameters", json{{"rope_type", "linear"}, {"factor", 1e300}}), "is that of no model"));
  EXPECT_TRUE(has(scaled("linear", {{"partial_rotary_factor", 0.5}}),
                  "a partial_rotary_factor of 0.5 is not known for a llama model"));
  EXPECT_TRUE(has(scaled("linear", {{"mscale", 0.5}}), "rope_parameters: 'mscale' is not known"));
  EXPECT_TRUE(has(with("rope_scaling", json{{"rope_type", "linear"}, {"factor", 2}}), "leave one"));
  EXPECT_TRUE(has(with("quantization_config", json::object()), "quantized already"));
}

TEST(DecoderConfig, RefusesListsThatNameNoBlocks) {
  TemporaryFolder folder;
  fs::copy(kDecoders + "smollm3_window", folder.path(),
           fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  const json good = json::parse(read_file(folder / "config.json"));
  const auto with = [&](const char* key, const json& value) {
    json changed = good;
    changed[key] = value;
    write_file(folder / "config.json", changed.dump());
    return answer_to(folder.path());
  };
  EXPECT_EQ(with("layer_types", {"full_attention", "sliding_attention"}), "");
  EXPECT_TRUE(has(with("layer_types", {"full_attention"}), "is not a list of 2 texts"));
  EXPECT_TRUE(
      has(with("layer_types", {"full_attention", "odd"}), "attention \"odd\" of layer 1 is not known"));
  EXPECT_TRUE(has(with("no_rope_layers", {0, 2}), "'no_rope_layers' has 2 for layer 1"));
  EXPECT_TRUE(has(with("no_rope_layers", {false, true}), "'no_rope_layers' has false"));
  EXPECT_TRUE(has(with("no_rope_layers", {1}), "is not a list of 2 numbers"));
}

// Keys that change what transformers computes are followed or refused.
TEST(DecoderConfig, ReadsSwitchesAsTransformersDoes) {
  TemporaryFolder folder;
  const auto read = [&](const std::string& name, const json& changes) {
    json config = json::parse(read_file(kDecoders + name + "/config.json"));
    config.update(changes);
    write_file(folder / "config.json", config.dump());
    return read_decoder_config(folder / "config.json");
  };
  const auto refusal = [&](const std::string& name, const json& changes) -> std::string {
    try {
      read(name, changes);
      return "";
    } catch (const Error& failure) {
      return failure.what();
    }
  };
  EXPECT_EQ(read("gemma", {{"hidden_act", "relu"}}).activation, Activation::kRelu);
  EXPECT_EQ(read("gemma", {{"hidden_act", "gelu"}}).activation, Activation::kTanhGelu);
  EXPECT_EQ(read("gemma3_window", {{"attn_logit_softcapping", 2.0}}).score_cap, 0);
  EXPECT_EQ(read("gemma3_window", {{"final_logit_softcapping", 2.0}}).logit_cap, 2);
  EXPECT_EQ(read("phi3", {{"layer_types", {"full_attention", "full_attention"}}}).windows,
            (std::vector<int64_t>{20, 20}));
  json yarn = json::parse(read_file(kDecoders + "phi3_short/config.json"))["rope_parameters"];
  yarn["rope_type"] = "yarn";
  EXPECT_EQ(read("phi3_short", {{"rope_parameters", yarn}}).rope.scaling, RopeScaling::kLongrope);
  EXPECT_EQ(read("phi3_short", {{"original_max_position_embeddings", nullptr}}).rope.original_positions,
            4096);
  EXPECT_EQ(read("opt", {{"", 0.5}}).norm_epsilon, 1e-5);
  EXPECT_TRUE(has(refusal("llama", {{"is_causal", false}}), "predicts no next token"));
  EXPECT_TRUE(has(refusal("qwen2", {{"layer_types", {"sliding_attention", "full_attention"}}}),
                  "there is no sliding window"));
  EXPECT_TRUE(
      has(refusal("qwen2", {{"layer_types", {"linear_attention", "full_attention"}}}), "is not known"));
  EXPECT_TRUE(has(refusal("opt", {{"do_layer_norm_before", false}}),
                  "a opt model with 'do_layer_norm_before' false"));
  EXPECT_TRUE(has(refusal("opt", {{"word_embed_proj_dim", 8}}), "an embedding of width 8, projected to 16"));
  EXPECT_TRUE(has(refusal("gpt2", {{"scale_attn_by_inverse_layer_idx", true}}), "cannot be run"));
  EXPECT_TRUE(
      has(refusal("phi3_short", {{"rope_parameters", {{"rope_type", "longrope"}, {"short_factor", {1.0}}}}}),
          "'short_factor' is not a list of 4 numbers above 0"));
  json both = json::parse(read_file(kDecoders + "gemma3_window/config.json"))["rope_parameters"];
  both["full_attention"]["partial_rotary_factor"] = 0.5;
  EXPECT_TRUE(
      has(refusal("gemma3_window", {{"rope_parameters", both}}), "partial_rotary_factor is not known here"));
  both.erase("full_attention");
  EXPECT_TRUE(has(refusal("gemma3_window", {{"rope_parameters", both}}), "has no object 'full_attention'"));
  EXPECT_TRUE(
      has(refusal("llama", {{"rope_parameters", both}}), "by kind of attention are not known for a llama"));
}

TEST(DecoderConfig, RefusesWeightsThatAreQuantizedInOtherWays) {
  const json weights = {{"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "channel"}};
  const json good = {
      {"quant_method", "compressed-tensors"},
      {"format", "int-quantized"},
      {"config_groups", {{"group_0", {{"weights", weights}, {"input_activations", nullptr}}}}}};
  const auto with = [&](const char* pointer, const json& value) {
    Copy copy;
    copy.config["quantization_config"] = good;
    copy.config["quantization_config"][json::json_pointer(pointer)] = value;
    return answer_to(copy.path());
  };
  EXPECT_EQ(with("/version", "1"), "");  // whose weights are all floating
  EXPECT_TRUE(has(with("/quant_method", "bitsandbytes"), "weights of 'bitsandbytes' cannot be run yet"));
  EXPECT_TRUE(has(with("/format", "float-quantized"), "weights of format 'float-quantized'"));
  Copy packed;
  packed.config["quantization_config"] = {{"quant_method", "awq"}, {"bits", 4}, {"version", "gemv"}};
  EXPECT_TRUE(has(answer_to(packed.path()), "awq of version 'gemv'"));
  EXPECT_TRUE(has(with("/config_groups/group_0/weights/num_bits", 9), "cannot be run yet"));
  EXPECT_TRUE(has(with("/config_groups/group_0/weights/strategy", "block"), "cannot be run yet"));
  EXPECT_TRUE(has(with("/config_groups/group_0/output_activations", weights), "rounded outputs"));
  EXPECT_TRUE(has(with("/config_groups/group_0/input_activations", weights), "input_activations"));
  EXPECT_TRUE(has(with("/config_groups", json::object()), "weights without config_groups"));
  EXPECT_TRUE(has(with("/config_groups/group_0/weights", 1), "a group without weights"));
  EXPECT_TRUE(has(with("/kv_cache_scheme", weights), "its kv_cache_scheme"));
}

}  // namespace
}  // namespace mcompress
