#include "cli/language_model.h"

namespace mcompress::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json inspected(const std::string& path) { return json::parse(run_mcompress("inspect --json " + path).out); }

TEST_F(LanguageModel, IsShownByInspectWithoutReadingItsWeights) {
  const json found = inspected(folder_ / "model");
  const json& model = found["language_model"];
  EXPECT_EQ(found["parameters"], 11088);
  EXPECT_EQ(model["architecture"], "llama");
  EXPECT_EQ(model["shape"]["heads"], 4);
  EXPECT_EQ(model["shape"]["key_value_heads"], 2);
  EXPECT_EQ(model["shape"]["context"], 128);
  EXPECT_EQ(model["shape"]["tied_head"], true);
  EXPECT_EQ(model["tokenizer"], (json{{"kind", "byte-level BPE"}, {"tokens", 420}}));
  EXPECT_EQ(model["quantization"], nullptr);
  EXPECT_EQ(model["bytes"]["embedding"], 448 * 16 * 4);
  EXPECT_EQ(model["bytes"]["feed_forward"], 2 * 3 * 16 * 24 * 4);
  EXPECT_EQ(model["commands"], json::array({"evaluate", "gptq", "awq", "quantize", "prune"}));
  const Outcome text = run_mcompress("inspect " + (folder_ / "model"));
  EXPECT_TRUE(contains(
      text.out, "architecture llama: 2 blocks of width 16 and 24, 4 heads of 4 (2 for keys and values)"))
      << text.out;
  EXPECT_TRUE(contains(text.out, "tokenizer: byte-level BPE, 420 tokens")) << text.out;
  EXPECT_TRUE(contains(text.out, "commands: evaluate, gptq, awq, quantize, prune")) << text.out;
  const json report = report_of("inspect " + (folder_ / "model"));
  EXPECT_EQ(report["input"]["sha256"], nullptr);
  EXPECT_EQ(report["input"]["nonzeros"], nullptr);
  const json values = json::parse(run_mcompress("inspect --values --json " + (folder_ / "model")).out);
  EXPECT_EQ(values["nonzeros"], 11088);
}

TEST_F(LanguageModel, IsShownByInspectWhateverItIs) {
  const json gguf = inspected(shipped("gguf/gemma2_window.gguf"));
  EXPECT_EQ(gguf["language_model"]["shape"]["windowed_blocks"], 1);
  EXPECT_EQ(gguf["language_model"]["tokenizer"]["kind"], "SentencePiece BPE");
  EXPECT_EQ(gguf["language_model"]["commands"], json::array({"evaluate"}));
  EXPECT_EQ(inspected(shipped("gguf/qwen2.gguf"))["language_model"]["tokenizer"], nullptr);
  EXPECT_TRUE(contains(run_mcompress("inspect " + shipped("gguf/qwen2.gguf")).out, "tokenizer: none"));
  EXPECT_EQ(inspected(shipped("gguf/blocks.gguf"))["language_model"]["obstacle"].get<std::string>().find(
                "GGUF file"),
            0U);
  const auto with_config = [&](const json& changes) {
    json config = json::parse(read_file(shipped("decoders/llama/config.json")));
    config.update(changes);
    write_file(folder_ / "model/config.json", config.dump());
    return inspected(folder_ / "model")["language_model"];
  };
  const json odd = with_config({{"model_type", "odd"}});
  EXPECT_TRUE(contains(odd["obstacle"], "model type 'odd' cannot be run; known are gemma")) << odd;
  EXPECT_EQ(odd["commands"], json::array({"quantize", "prune"}));
  const json quantization = {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 128}, {"version", "gemv"}};
  const json awq = with_config({{"quantization_config", quantization}});
  EXPECT_EQ(awq["quantization"], "awq, 4 bits, group size 128");
  EXPECT_TRUE(contains(awq["obstacle"], "awq of version 'gemv' and 4 bits cannot be run yet")) << awq;
  for (const auto& [tokenizer, kind] : {std::pair("llama2", "SentencePiece BPE"),
                                        {"unigram", "SentencePiece unigram"},
                                        {"bert", "WordPiece"}}) {
    fs::copy(shipped(std::string("tokenizers/") + tokenizer + ".json"), folder_ / "model/tokenizer.json",
             fs::copy_options::overwrite_existing);
    EXPECT_EQ(with_config(json::object())["tokenizer"]["kind"], kind);
  }
  fs::remove(folder_ / "model/tokenizer.json");
  fs::copy(shipped("tokenizers/sp_unigram/tokenizer.model"), folder_ / "model/tokenizer.model");
  EXPECT_EQ(with_config(json::object())["tokenizer"]["kind"], "SentencePiece unigram");
  expect_all({{"inspect --values " + shipped("gguf/llama.gguf"), 2, "--values is for folders"},
              {"inspect --values " + shipped("fashion_mlp.pt"), 2, "the values are always read"}});
}

TEST_F(LanguageModel, IsMeasuredBesideWhatIsMadeOfIt) {
  const std::string text = " --eval-data " + (folder_ / "text.txt") + " --seqlen 32 --windows 20 ";
  const std::string model = folder_ / "model";
  const json before =
      report_of(evaluate("--seqlen 32 --windows 20"))["metrics"]["before"]["perplexity"]["nats"];
  const json quantized =
      report_of("quantize " + model + " -o " + (folder_ / "q") + text + "--max-perplexity-ratio 1.1");
  EXPECT_EQ(quantized["metrics"]["before"]["perplexity"]["nats"], before);
  const json after = quantized["metrics"]["after"]["perplexity"]["nats"];
  EXPECT_NE(after, before);
  EXPECT_NEAR(after, before, 0.05);
  EXPECT_GT(quantized["comparison"]["reference"]["kl_divergence"]["mean"], 0);
  EXPECT_EQ(quantized["gates"][0]["name"], "max-perplexity-ratio");
  EXPECT_EQ(quantized["gates"][0]["passed"], true);
  // What was written is measured as any other model.
  EXPECT_EQ(report_of("evaluate " + (folder_ / "q") + text)["metrics"]["before"]["perplexity"]["nats"],
            after);
  EXPECT_EQ(inspected(folder_ / "q")["language_model"]["quantization"],
            "compressed-tensors int-quantized, 8 bits");

  const std::string prune = "prune " + model + " --sparsity 0.9 -o " + (folder_ / "p") + text;
  const Outcome failed = run_mcompress(prune + "--max-perplexity-ratio 1.001");
  EXPECT_EQ(failed.exit_code, 3) << failed.err;
  EXPECT_TRUE(contains(failed.err, "gate --max-perplexity-ratio failed")) << failed.err;
  EXPECT_TRUE(contains(failed.out, "KL divergence")) << failed.out;
  EXPECT_TRUE(fs::exists(folder_ / "p/config.json"));
  EXPECT_EQ(run_mcompress(prune + "--force --min-agreement 99.9%").exit_code, 3);
}

TEST_F(LanguageModel, IsMeasuredOnTokenIds) {
  const auto nats = [&](const std::string& data) {
    return report_of(evaluate("--seqlen 16", data))["metrics"]["before"]["perplexity"]["nats"];
  };
  std::string two, header = R"({"ids":{"dtype":"I32","shape":[4,16],"data_offsets":[0,256]}})", four;
  for (int i = 0; i < 64; ++i) {
    const int id = i * 37 % 448;
    two += {static_cast<char>(id & 255), static_cast<char>(id >> 8)};
    four += {static_cast<char>(id & 255), static_cast<char>(id >> 8), '\0', '\0'};
  }
  write_file(folder_ / "ids.bin", two);
  const uint64_t size = header.size();
  write_file(folder_ / "ids.safetensors",
             std::string(reinterpret_cast<const char*>(&size), 8) + header + four);
  std::string npy = "{'descr': '<u2', 'fortran_order': False, 'shape': (64,), }";
  npy += std::string(64 - (npy.size() + 11) % 64, ' ') + "\n";
  const std::string length = {static_cast<char>(npy.size()), '\0'};
  write_file(folder_ / "ids.npy", std::string("\x93NUMPY\x01\x00", 8) + length + npy + two);
  EXPECT_EQ(nats("ids.safetensors"), nats("ids.bin"));
  EXPECT_EQ(nats("ids.npy"), nats("ids.bin"));

  write_file(folder_ / "wide.bin", four);
  EXPECT_EQ(nats("wide.bin"), nats("ids.bin"));

  write_file(folder_ / "odd.bin", two + "x");
  write_file(folder_ / "large.bin", two + "\xff\xff");
  write_file(folder_ / "empty.bin", "");
  header = R"({"a":{"dtype":"F32","shape":[64],"data_offsets":[0,256]}})";
  const uint64_t floats = header.size();
  write_file(folder_ / "float.safetensors",
             std::string(reinterpret_cast<const char*>(&floats), 8) + header + four);
  expect_all({{evaluate("", "odd.bin"), 65, "has 129 bytes, which is no number of token ids of 2 bytes"},
              {evaluate("", "empty.bin"), 65, "empty"},
              {evaluate("", "none.bin"), 66, "none.bin' do not exist"},
              {evaluate("", "large.bin"), 65, "token id 65535 at place 64 of"},
              {evaluate("", "float.safetensors"), 65, "numbers of type F32, and token ids are integers"},
              {evaluate("--text-layout rows", "ids.bin"), 2, "--text-layout is for text"}});
}

TEST_F(LanguageModel, IsNotCompressedWithWhatCannotBeMeasured) {
  const std::string run = "quantize " + (folder_ / "model") + " -o " + (folder_ / "q"),
                    text = " --eval-data " + (folder_ / "text.txt");
  json config = json::parse(read_file(shipped("decoders/llama/config.json")));
  expect_all(
      {{run + text + " --max-accuracy-drop 1%", 2, "--max-accuracy-drop is not measured of a language model"},
       {run + text + " --max-latency-ratio 1", 2, "--max-latency-ratio is not measured"},
       {run + " --max-perplexity-ratio 1.1", 2, "--max-perplexity-ratio needs --eval-data"},
       {run + text + " --split train --mean 0.5", 2, "--split is for images and tables"},
       {run + " --eval-data " + (folder_ / "none"), 66, "does not exist"},
       {"quantize " + shipped("fashion_mlp.pt") + " -o " + (folder_ / "q") + " --seqlen 32", 2,
        "--seqlen is for language models"},
       {"prune " + shipped("gguf/llama.gguf") + " --sparsity 0.5 -o " + (folder_ / "q"), 65,
        "is a GGUF file, which is only evaluated and inspected yet"},
       {"quantize " + shipped("decoders/gpt2") + " -o " + (folder_ / "q"), 65, "a Conv1D layer of GPT-2"}},
      folder_ / "q");
  expect_all(
      {{"prune " + (folder_ / "model") + " --sparsity 0.5 -o " + (folder_ / "model/p"), 73,
        "is inside the model's folder"},
       {"prune " + (folder_ / "model") + " --sparsity 0.5 -o " + (folder_ / "model"), 73, "is the input"}},
      folder_ / "model/p");
  const std::string tokenizer = folder_ / "model/tokenizer.json",
                    pointer = "version https://git-lfs.github.com/spec/v1\n";
  fs::rename(tokenizer, folder_ / "kept.json");
  write_file(tokenizer, pointer);
  expect_all({{evaluate("--seqlen 32"), 65,
               "tokenizer.json' is a Git LFS pointer, not the file; run 'git lfs pull'"}});
  EXPECT_TRUE(
      contains(run_mcompress("inspect " + (folder_ / "model")).out, "tokenizer.json' is a Git LFS pointer"));
  fs::rename(folder_ / "kept.json", tokenizer);
  config["model_type"] = "odd";
  write_file(folder_ / "model/config.json", config.dump());
  expect_all({{run + text, 65, "model type 'odd' cannot be run"}}, folder_ / "q");
  EXPECT_EQ(run_mcompress(run).exit_code, 0);  // which does not run it
}

}  // namespace
}  // namespace mcompress::testing
