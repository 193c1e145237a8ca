#include "cli/packed_formats.h"
#include "cli/safetensors_file.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

TEST_F(PackedFormats, BecomeGgufFiles) {
  const double exact = perplexity("model");
  const auto gguf = [&](const std::string& from, const std::string& type) {
    return report_of("convert " + (folder_ / from) + " --force --format gguf --type " + type + " -o " +
                     (folder_ / "model.gguf"));
  };
  const json report = gguf("model", "F32");
  EXPECT_EQ(report["output"]["format"], "gguf");
  EXPECT_EQ(report["output"]["bytes"], report["size"]["predicted_bytes"]);
  EXPECT_EQ(report["output"]["parameters"], report["input"]["parameters"]);
  EXPECT_NEAR(perplexity("model.gguf"), exact, 1e-5 * exact);
  gguf("model", "Q8_0");
  EXPECT_NEAR(perplexity("model.gguf"), exact, 0.02 * exact);
  // Its rows are shorter than a block of Q4_K.
  const json short_rows = gguf("model", "Q4_K");
  for (const json& layer : short_rows["layers"]) {
    EXPECT_EQ(layer["decision"], "Q8_0");
    EXPECT_TRUE(contains(layer["reason"].get<std::string>(), "no whole blocks of 256")) << layer;
  }
  report_of(weight_only("--group-size 32 --format gptq", "packed"));
  gguf("packed", "F32");
  EXPECT_NEAR(perplexity("model.gguf"), perplexity("packed"), 1e-5 * exact);
  expect_all({{convert("model", "no", "--format gguf --type Q5_K"), 2, "Q5_K"},
              {"convert " + (folder_ / "model.gguf") + " --format gguf -o " + (folder_ / "no"), 2,
               "converts to a Hugging Face folder only"}},
             folder_ / "no");
  const std::string tokenizer = read_file(folder_ / "model/tokenizer.json");
  json broken = json::parse(tokenizer);
  broken["model"]["merges"][3] = {"a"};
  write_file(folder_ / "model/tokenizer.json", broken.dump());
  expect_all({{convert("model", "no", "--format gguf"), 65, "tokenizer.json"}}, folder_ / "no");
  broken = json::parse(tokenizer);
  broken["normalizer"] = {{"type", "Lowercase"}};
  write_file(folder_ / "model/tokenizer.json", broken.dump());
  expect_all({{convert("model", "no", "--format gguf"), 65, "no normalizer 'Lowercase'"}}, folder_ / "no");
  write_file(folder_ / "model/tokenizer.json", tokenizer);
  config_["sliding_window"] = 16;
  config_["model_type"] = "mistral";
  write_model();
  expect_all({{convert("model", "no", "--format gguf"), 65, "look back 16 tokens"}}, folder_ / "no");
}

TEST_F(PackedFormats, ComeBackFromGgufFiles) {
  const auto there_and_back = [&](const std::string& options) {
    write_model();
    report_of("convert " + (folder_ / "model") + " --force --format gguf --type F32 -o " +
              (folder_ / "model.gguf"));
    return report_of("convert " + (folder_ / "model.gguf") + " --force --format dequantized -o " +
                     (folder_ / "back") + " " + options);
  };
  const json report = there_and_back("");
  EXPECT_EQ(report["output"]["bytes"], report["size"]["predicted_bytes"]);
  EXPECT_EQ(report["output"]["parameters"], report["input"]["parameters"]);
  EXPECT_EQ(perplexity("back"), perplexity("model"));
  const json settings = json::parse(read_file(folder_ / "back/tokenizer.json"));
  const json original = json::parse(read_file(folder_ / "model/tokenizer.json"));
  EXPECT_EQ(settings["model"]["vocab"], original["model"]["vocab"]);
  there_and_back("--max-shard-size 100kB");
  EXPECT_TRUE(std::filesystem::exists(folder_ / "back/model.safetensors.index.json"));
  EXPECT_EQ(perplexity("back"), perplexity("model"));
  // What is divided in a GGUF file follows from a factor in a folder.
  config_["max_position_embeddings"] = 131072;
  config_["rope_theta"] = 500000.0;
  const double plain = (there_and_back(""), perplexity("back"));
  config_["rope_scaling"] = {{"rope_type", "llama3"},
                             {"factor", 32.0},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 8192}};
  there_and_back("");
  EXPECT_EQ(config_of("back")["rope_scaling"], config_["rope_scaling"]);
  EXPECT_NEAR(perplexity("back"), perplexity("model"), 1e-6 * plain);
  EXPECT_NE(perplexity("back"), plain);
  config_["rope_scaling"]["low_freq_factor"] = 2.0;
  write_model();
  report_of(convert("model", "odd.gguf", "--format gguf --type F32"));
  const auto to_folder = [&](const std::string& path) {
    return "convert " + path + " --format dequantized -o " + (folder_ / "no");
  };
  expect_all({{to_folder(folder_ / "odd.gguf"), 65, "whose rope_freqs are not those of Llama 3"},
              {to_folder(folder_ / "odd.gguf") + " --type F16", 2, "--type goes with --format gguf"}},
             folder_ / "no");
  report_of("convert " + shipped("gguf/gemma2_window.gguf") + " --format dequantized -o " +
            (folder_ / "gemma2"));
  EXPECT_EQ(config_of("gemma2")["sliding_window"], 20);
}

// Codes are written as they are where the type of GGUF has a place for them.
TEST_F(PackedFormats, KeepTheirCodesInGgufFiles) {
  const auto gguf = [&](const std::string& options) {
    return "convert " + (folder_ / "packed") + " --force --format gguf -o " + (folder_ / "model.gguf") + " " +
           options;
  };
  const auto expect_kept = [&](const std::string& type) {
    const json report = report_of(gguf("--type " + type));
    for (const json& layer : report["layers"]) {
      if (layer["kind"] != "linear") continue;
      EXPECT_EQ(layer["decision"], type);
      EXPECT_EQ(layer["reason"], "its codes as they are");
    }
    EXPECT_EQ(run_mcompress("verify " + (folder_ / "model.gguf")).out, "nothing found; 15 packed layers\n");
    // The embedding and the norms are rounded too.
    report_of("convert " + (folder_ / "model.gguf") + " --force --format dequantized -o " +
              (folder_ / "back"));
    report_of("convert " + (folder_ / "packed") + " --force --format dequantized -o " + (folder_ / "dense"));
    const Tensors back(folder_ / "back/model.safetensors"), dense(folder_ / "dense/model.safetensors");
    for (const auto& [name, tensor] : dense.all) {
      if (contains(name, "proj")) {
        EXPECT_TRUE(back.all.at(name).bytes == tensor.bytes) << name;
      }
    }
  };
  for (const std::string options :
       {"--format gptq", "--format awq", "--format compressed-tensors --bits 3"}) {
    report_of(weight_only("--group-size 32 " + options, "packed"));
    expect_kept("Q4_0");
    expect_kept("Q8_0");
  }
  report_of(weight_only("--group-size 32 --asym --format gptq", "packed"));
  expect_kept("Q8_0");
  report_of(weight_only("--group-size 32 --bits 8 --format gptq", "packed"));
  expect_kept("Q8_0");
  expect_all({{gguf("--type Q4_0"), 2, "Q4_0 has no place for its codes and their scales; use --type Q8_0"},
              {gguf("--type Q4_1"), 2, "or pass --allow-requantize"}},
             folder_ / "no");
  const json rounded = report_of(gguf("--type Q4_0 --allow-requantize"));
  for (const json& layer : rounded["layers"]) {
    if (layer["kind"] == "linear") {
      EXPECT_EQ(layer["reason"], "rounded again, since the type has no place for its codes");
    }
  }
  // Blocks of more than one group.
  report_of(weight_only("--group-size 16 --format gptq", "packed"));
  expect_all({{gguf(""), 2, "use --type F16"}}, folder_ / "no");
  EXPECT_EQ(report_of(gguf("--type F16"))["layers"][1]["reason"], "its values, rounded to F16");
  // Layers with more bits than the others.
  report_of(weight_only("--group-size 32 --layer-config down_proj=bits:8 --format gptq", "packed"));
  const json mixed = report_of(gguf("--type Q4_0"));
  for (const json& layer : mixed["layers"]) {
    if (layer["kind"] != "linear") continue;
    const bool wide = contains(layer["name"], "ffn_down");
    EXPECT_EQ(layer["decision"], wide ? "Q8_0" : "Q4_0") << layer;
    EXPECT_EQ(contains(layer["reason"], "for which Q4_0 has no place"), wide) << layer;
  }
  EXPECT_NEAR(perplexity("model.gguf"), perplexity("packed"), 0.02 * perplexity("packed"));
  // Layers that round their inputs too.
  report_of("quantize " + (folder_ / "model") + " --force -o " + (folder_ / "packed"));
  expect_all({{gguf(""), 2, "use --type F16"}}, folder_ / "no");
  const json rows = report_of(gguf("--allow-requantize"));
  EXPECT_TRUE(contains(rows["warnings"].dump(), "round their inputs to 8 bits"));
  EXPECT_EQ(rows["layers"][1]["reason"], "its codes as they are, its scales rounded to float16");
}

// A key or a tensor of a file, renamed to another of the same length.
std::string renamed(std::string file, const std::string& from, const std::string& to) {
  EXPECT_EQ(from.size(), to.size());
  return file.replace(file.find(from), from.size(), to);
}

TEST_F(PackedFormats, AreVerifiedAsGgufFiles) {
  config_["eos_token_id"] = 0;
  write_model();
  report_of(convert("model", "model.gguf", "--format gguf --type Q8_0"));
  const std::string good = read_file(folder_ / "model.gguf");
  const auto answer = [&](const std::string& file) {
    write_file(folder_ / "faulty.gguf", file);
    const Outcome run = run_mcompress("verify " + (folder_ / "faulty.gguf"));
    return std::to_string(run.exit_code) + " " + run.out;
  };
  const auto expect_found = [&](const std::string& file, const std::string& words) {
    const std::string found = answer(file);
    EXPECT_TRUE(found.starts_with("65 ") && contains(found, words)) << words << "\n" << found;
  };
  EXPECT_EQ(answer(good), "0 nothing found; 15 packed layers\n");
  std::string nan = good;
  nan.replace(nan.size() - 4, 4, "\xFF\xFF\xFF\x7F");  // of the last norm
  expect_found(nan, "output_norm.weight: has 1 values that are NaN or infinite");
  expect_found(good.substr(0, good.size() - 4096), "reaches beyond the end of the file");
  expect_found(renamed(good, "blk.1.ffn_up.weight", "blk.7.ffn_up.weight"), "blk.1.ffn_up.weight");
  expect_found(renamed(good, "output_norm.weight", "outputXnorm.weight"), "output_norm.weight");
  expect_found(renamed(good, "llama.block_count", "llama.block_kount"), "lacks the key 'llama.block_count'");
  std::string ids = good;
  const std::string key = "tokenizer.ggml.eos_token_id";
  ids[ids.find(key) + key.size() + 6] = 1;  // by 65536
  expect_found(ids, key + ": is 65536, and there are 448 tokens");
  expect_found(renamed(good, "general.architecture", "general.architectuXX"),
               "lacks the key 'general.architecture'");
  // Of an architecture that is not known nothing else is.
  std::string other = good;
  const std::string name("llama");
  const size_t value = other.find(name, other.find("general.architecture"));
  other.replace(value, name.size(), "odder");
  EXPECT_EQ(answer(other), "0 nothing found; 15 packed layers\n");
  EXPECT_TRUE(contains(run_mcompress("verify " + (folder_ / "faulty.gguf")).err,
                       "tensors are not held against an architecture: "));
}

}  // namespace
}  // namespace mcompress::testing
