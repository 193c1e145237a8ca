#include "mcompress/model/decoder.h"

#include <cmath>
#include <filesystem>
#include <functional>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/output.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/gguf_import.h"
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

// What transformers computed (tests/data/make_decoders.py): token ids, and the logits of the last of them.
struct Expected {
  at::Tensor ids, logits;
};

Expected expected_of(const std::string& name) {
  const MappedFile file(kDecoders + name + ".safetensors");
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
  return logits_of(Decoder(kDecoders + name, compute), expected) - expected.logits;
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

TEST_P(EveryGguf, BecomesAFolderWithTheSameLogits) {
  const Expected expected = expected_of(GetParam());
  const Decoder model(MCOMPRESS_TESTS_DIR "/data/gguf/" + GetParam() + ".gguf", at::kFloat);
  const TemporaryFolder outside;
  OutputFolder output(outside / "folder", false);
  write_folder(model, folder_config(model.config()), {{"config.json", config_json(model.config()).dump()}},
               uint64_t{1} << 30, output);
  output.commit();
  const Decoder folder(outside / "folder", at::kFloat);
  EXPECT_LT((logits_of(folder, expected) - expected.logits).abs().max().item<double>(), 1e-4);
}

// tests/data/make_gguf.py wrote them.
INSTANTIATE_TEST_SUITE_P(Fixtures, EveryGguf,
                         ::testing::Values("gemma2_window", "gemma3_v4", "gpt2", "phi3_long_window", "qwen2",
                                           "qwen3", "smollm3"),
                         [](const auto& info) { return info.param; });

TEST(Decoder, BecomesNoFolderThatWouldComputeSomethingElse) {
  const DecoderConfig llama = Decoder(MCOMPRESS_TESTS_DIR "/data/gguf/llama.gguf", at::kFloat).config();
  const auto refusal = [&](const std::function<void(DecoderConfig&)>& change) -> std::string {
    DecoderConfig config = llama;
    change(config);
    try {
      folder_config(config);
      return "";
    } catch (const Error& failure) {
      return failure.what();
    }
  };
  EXPECT_EQ(refusal([](DecoderConfig& config) { config.qkv_bias = config.output_bias = true; }), "");
  EXPECT_TRUE(has(refusal([](DecoderConfig& config) { config.qkv_bias = true; }), "with these biases"));
  EXPECT_TRUE(has(refusal([](DecoderConfig& config) { config.windows[1] = 5; }), "with these windows"));
  EXPECT_TRUE(has(refusal([](DecoderConfig& config) { config.score_cap = 5; }), "these caps of scores"));
  EXPECT_TRUE(
      has(refusal([](DecoderConfig& config) { config.rotates[0] = false; }), "rotated in this way cannot"));
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

TEST(Decoder, ReadsWhatTiesAndLeavesOutKeysAsTransformersDoes) {
  // A head beside the embedding must be the same.
  const Decoder qwen(kDecoders + "qwen2", at::kFloat);
  EXPECT_TRUE(qwen.config().tied_head);
  json config = json::parse(read_file(kDecoders + "qwen3/config.json"));
  TemporaryFolder folder;
  fs::copy(kDecoders + "qwen3", folder.path(),
           fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  config["tie_word_embeddings"] = true;
  write_file(folder / "config.json", config.dump());
  EXPECT_TRUE(has(answer_to(folder.path()), "'lm_head.weight' differs from the embedding"));
  // An absent window is the architecture's own, null is none.
  config = json::parse(read_file(kDecoders + "mistral/config.json"));
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

TEST(Decoder, RefusesGgufFilesWithoutTheFactorsOfTheirRotation) {
  const TemporaryFolder folder;
  std::string file = read_file(MCOMPRESS_TESTS_DIR "/data/gguf/phi3_long_window.gguf");
  const std::string name = "rope_factors_short.weight";
  file.replace(file.find(name), name.size(), "rope_factors_shorX.weight");
  write_file(folder / "m.gguf", file);
  EXPECT_TRUE(has(answer_to(folder / "m.gguf"), "lacks the tensor 'rope_factors_short.weight'"));
}

void rename_key(const std::string& from, const std::string& to, std::string& file) {
  const uint64_t length = to.size();
  const std::string prefix(reinterpret_cast<const char*>(&length), sizeof(length));
  file.replace(file.find(from) - prefix.size(), prefix.size() + from.size(), prefix + to);
}

TEST(Decoder, RefusesGgufFilesOfModelsThatItDoesNotKnow) {
  const TemporaryFolder folder;
  std::string file = read_file(MCOMPRESS_TESTS_DIR "/data/gguf/qwen3.gguf");
  const std::string key = "qwen3.attention.value_length";
  ++file[file.find(key) + key.size() + sizeof(uint32_t)];  // behind its type
  write_file(folder / "values.gguf", file);
  EXPECT_TRUE(has(answer_to(folder / "values.gguf"), "have keys of width 8 and values of width 9"));
  file = read_file(MCOMPRESS_TESTS_DIR "/data/gguf/llama.gguf");
  rename_key("llama.rope.dimension_count", "llama.expert_count", file);
  rename_key("llama.rope.freq_base", "llama.rope.as_long_as_before", file);
  write_file(folder / "experts.gguf", file);
  EXPECT_TRUE(has(answer_to(folder / "experts.gguf"), "llama with experts is not known"));
}

TEST(Decoder, NamesTheBlockAndTheWindowOfANaN) {
  const Decoder model(kDecoders + "llama", at::kFloat);
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
