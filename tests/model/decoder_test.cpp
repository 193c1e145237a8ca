#include "mcompress/model/decoder.h"

#include <cmath>
#include <filesystem>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/model/checkpoint.h"
#include "test_files.h"

namespace mcompress {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

const std::string kFolder = MCOMPRESS_TESTS_DIR "/data/decoders/";

// What transformers computed (tests/data/make_decoders.py): token ids, and the logits of the last of them.
struct Expected {
  at::Tensor ids, logits;
};

Expected expected_of(const std::string& name) {
  const MappedFile file(kFolder + name + ".safetensors");
  Expected expected;
  for (const Array& array : read_safetensors(file.bytes(), name).arrays)
    (array.name == "ids" ? expected.ids : expected.logits) = rows_of(array, 0, array.shape[0]).clone();
  return expected;
}

at::Tensor logits_of(const Decoder& model, const Expected& expected) {
  const at::Tensor hidden = model.embed(expected.ids);
  for (int64_t block = 0; block < model.config().blocks; ++block) model.run_block(block, hidden);
  const int64_t length = hidden.size(1), last = expected.logits.size(1);
  return model.logits(hidden.slice(1, length - last, length).reshape({-1, hidden.size(2)}))
      .view(expected.logits.sizes());
}

at::Tensor difference(const std::string& name, at::ScalarType compute) {
  const Expected expected = expected_of(name);
  return logits_of(Decoder(kFolder + name, compute), expected) - expected.logits;
}

double rms(const at::Tensor& x) { return std::sqrt(x.square().mean().item<double>()); }

class EveryDecoder : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryDecoder, GivesTheLogitsOfTransformers) {
  const double size = rms(expected_of(GetParam()).logits);
  EXPECT_GT(size, 0.5);  // not all alike
  EXPECT_LT(difference(GetParam(), at::kFloat).abs().max().item<double>(), 1e-4);
  EXPECT_LT(rms(difference(GetParam(), at::kBFloat16)), 0.1 * size);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, EveryDecoder,
                         ::testing::Values("gemma", "gemma2_window", "gemma3_v4", "gemma3_window", "gpt2",
                                           "llama", "llama_biased", "llama_linear", "llama_llama3",
                                           "llama_v4", "llama_yarn", "mistral", "opt", "phi3",
                                           "phi3_long_window", "phi3_short", "qwen2", "qwen2_window", "qwen3",
                                           "qwen3_window", "smollm3", "smollm3_window"),
                         [](const auto& info) { return info.param; });

// The same model as a GGUF file (tests/data/make_gguf.py), its matrices rounded to F16.
TEST(Decoder, ReadsAGgufFileAsTheFolder) {
  const Expected expected = expected_of("llama");
  const Decoder model(MCOMPRESS_TESTS_DIR "/data/gguf/llama.gguf", at::kFloat);
  EXPECT_EQ(model.config().vocabulary, 448);
  EXPECT_TRUE(model.config().tied_head);
  EXPECT_LT(rms(logits_of(model, expected) - expected.logits), 2e-3 * rms(expected.logits));
  try {
    const Decoder blocks(MCOMPRESS_TESTS_DIR "/data/gguf/blocks.gguf", at::kFloat);
    FAIL();
  } catch (const Error& failure) {
    EXPECT_NE(std::string(failure.what()).find("architecture 'none' cannot be run"), std::string::npos);
  }
}

class EveryGguf : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryGguf, GivesTheLogitsOfTransformers) {
  const Expected expected = expected_of(GetParam());
  const Decoder model(MCOMPRESS_TESTS_DIR "/data/gguf/" + GetParam() + ".gguf", at::kFloat);
  EXPECT_LT((logits_of(model, expected) - expected.logits).abs().max().item<double>(), 1e-4);
}

// tests/data/make_gguf.py wrote them.
INSTANTIATE_TEST_SUITE_P(Fixtures, EveryGguf,
                         ::testing::Values("gemma2_window", "gemma3_v4", "gpt2", "phi3_long_window", "qwen2",
                                           "qwen3"),
                         [](const auto& info) { return info.param; });

// A copy of the llama fixture whose config.json is changed.
class Copy {
 public:
  Copy() {
    fs::copy(kFolder + "llama", folder_.path(),
             fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    config = json::parse(read_file(folder_ / "config.json"));
  }
  std::string path() {
    write_file(folder_ / "config.json", config.dump());
    return folder_.path();
  }
  std::string operator/(const std::string& name) { return folder_ / name; }

  json config;

 private:
  TemporaryFolder folder_;
};

std::string answer_to(const std::string& folder) {
  try {
    const Decoder model(folder, at::kFloat);
    return "";
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData) << failure.what();
    return failure.what();
  }
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Decoder, RefusesConfigurationsThatFitNoModel) {
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

TEST(Decoder, RefusesFilesThatAreNotOfTheModel) {
  Copy copy;
  copy.path();
  write_file(copy / "config.json", "[]");
  EXPECT_TRUE(has(answer_to(copy / ""), "is not a JSON object"));
  write_file(copy / "config.json", "{");
  EXPECT_FALSE(answer_to(copy / "").empty());
  copy.path();
  const std::string whole = read_file(copy / "model.safetensors");
  write_file(copy / "model.safetensors", whole.substr(0, whole.size() - 1));
  EXPECT_FALSE(answer_to(copy / "").empty());
  fs::remove(copy / "model.safetensors");
  EXPECT_THROW(Decoder(copy.path(), at::kFloat), Error);
}

TEST(Decoder, RefusesListsThatNameNoBlocks) {
  TemporaryFolder folder;
  fs::copy(kFolder + "smollm3_window", folder.path(),
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

TEST(Decoder, ReadsWhatTiesAndLeavesOutKeysAsTransformersDoes) {
  // A head beside the embedding must be the same.
  const Decoder qwen(kFolder + "qwen2", at::kFloat);
  EXPECT_TRUE(qwen.config().tied_head);
  json config = json::parse(read_file(kFolder + "qwen3/config.json"));
  TemporaryFolder folder;
  fs::copy(kFolder + "qwen3", folder.path(),
           fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  config["tie_word_embeddings"] = true;
  write_file(folder / "config.json", config.dump());
  EXPECT_TRUE(has(answer_to(folder.path()), "'lm_head.weight' differs from the embedding"));
  // An absent window is the architecture's own, null is none.
  config = json::parse(read_file(kFolder + "mistral/config.json"));
  const auto window_of = [&] {
    write_file(folder / "config.json", config.dump());
    return read_decoder_config(folder / "config.json").windows[1];
  };
  EXPECT_EQ(window_of(), 20);
  config["sliding_window"] = nullptr;
  EXPECT_EQ(window_of(), 0);
  config.erase("sliding_window");
  EXPECT_EQ(window_of(), 4096);
  config.erase("num_key_value_heads");
  config["num_attention_heads"] = 16;
  write_file(folder / "config.json", config.dump());
  EXPECT_EQ(read_decoder_config(folder / "config.json").kv_heads, 8);
}

// Keys that change what transformers computes are followed or refused.
TEST(Decoder, ReadsSwitchesAsTransformersDoes) {
  TemporaryFolder folder;
  const auto read = [&](const std::string& name, const json& changes) {
    json config = json::parse(read_file(kFolder + name + "/config.json"));
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
  json yarn = json::parse(read_file(kFolder + "phi3_short/config.json"))["rope_parameters"];
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
  json both = json::parse(read_file(kFolder + "gemma3_window/config.json"))["rope_parameters"];
  both["full_attention"]["partial_rotary_factor"] = 0.5;
  EXPECT_TRUE(
      has(refusal("gemma3_window", {{"rope_parameters", both}}), "partial_rotary_factor is not known here"));
  both.erase("full_attention");
  EXPECT_TRUE(has(refusal("gemma3_window", {{"rope_parameters", both}}), "has no object 'full_attention'"));
  EXPECT_TRUE(
      has(refusal("llama", {{"rope_parameters", both}}), "by kind of attention are not known for a llama"));
}

TEST(Decoder, RefusesWeightsThatAreQuantizedInOtherWays) {
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
  EXPECT_TRUE(has(with("/quant_method", "gptq"), "weights of 'gptq' cannot be run yet"));
  EXPECT_TRUE(has(with("/format", "pack-quantized"), "weights of format 'pack-quantized'"));
  EXPECT_TRUE(has(with("/config_groups/group_0/weights/num_bits", 4), "cannot be run yet"));
  EXPECT_TRUE(has(with("/config_groups/group_0/weights/symmetric", false), "cannot be run yet"));
  EXPECT_TRUE(has(with("/config_groups/group_0/output_activations", weights), "rounded outputs"));
  EXPECT_TRUE(has(with("/config_groups/group_0/input_activations", weights), "input_activations"));
  EXPECT_TRUE(has(with("/config_groups", json::object()), "weights without config_groups"));
  EXPECT_TRUE(has(with("/config_groups/group_0/weights", 1), "a group without weights"));
  EXPECT_TRUE(has(with("/kv_cache_scheme", weights), "its kv_cache_scheme"));
}

TEST(Decoder, RefusesGgufFilesWithoutTheFactorsOfTheirRotation) {
  const TemporaryFolder folder;
  std::string file = read_file(MCOMPRESS_TESTS_DIR "/data/gguf/phi3_long_window.gguf");
  const std::string name = "rope_factors_short.weight";
  file.replace(file.find(name), name.size(), "rope_factors_shorX.weight");
  write_file(folder / "m.gguf", file);
  EXPECT_TRUE(has(answer_to(folder / "m.gguf"), "lacks the tensor 'rope_factors_short.weight'"));
}

TEST(Decoder, NamesTheBlockAndTheWindowOfANaN) {
  const Decoder model(kFolder + "llama", at::kFloat);
  const at::Tensor hidden = model.embed(at::zeros({3, 5}, at::kLong));
  hidden[1][2][0] = NAN;
  try {
    model.run_block(1, hidden);
    FAIL();
  } catch (const Error& failure) {
    EXPECT_TRUE(has(failure.what(), "block 1 gives NaN or infinity for window 2")) << failure.what();
  }
  EXPECT_THROW(model.embed(at::full({1, 2}, 448, at::kLong)), Error);
  EXPECT_THROW(model.embed(at::full({1, 2}, -1, at::kLong)), Error);
}

}  // namespace
}  // namespace mcompress
