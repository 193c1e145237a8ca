#include "cli/language_model.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

TEST_F(LanguageModel, IsMeasuredOnTextWithAnErrorAndASpeed) {
  const json found = report_of(evaluate("--seqlen 32 --windows 10"))["metrics"]["before"]["perplexity"];
  EXPECT_EQ(found["windows"], 10);
  EXPECT_EQ(found["tokens"], 310);
  EXPECT_GT(found["value"].get<double>(), 1);
  EXPECT_GT(found["standard_error"].get<double>(), 0);
  const Outcome table = run_mcompress(evaluate("--seqlen 32 --windows 10"));
  EXPECT_TRUE(contains(table.out, "perplexity " + fmt::format("{:.4f}", found["value"].get<double>())))
      << table.out;
  EXPECT_TRUE(contains(table.out, "310 tokens")) << table.out;
}

TEST_F(LanguageModel, HasTheSamePerplexityForAnyThreadCountAndText) {
  const auto nats = [&](const std::string& command) {
    return report_of(command)["metrics"]["before"]["perplexity"]["nats"];
  };
  const json one = nats(evaluate("--seqlen 40 --threads 1"));
  EXPECT_EQ(nats(evaluate("--seqlen 40 --threads 2")), one);
  json line;
  line["body"] = read_file(folder_ / "text.txt");
  write_file(folder_ / "text.jsonl", line.dump() + "\n");
  EXPECT_EQ(nats(evaluate("--seqlen 40 --text-field body", "text.jsonl")), one);
  std::system(("gzip -k " + (folder_ / "text.txt")).c_str());
  EXPECT_EQ(nats(evaluate("--seqlen 40", "text.txt.gz")), one);
  EXPECT_NE(nats(evaluate("--seqlen 40 --text-layout rows")), one);
  EXPECT_NE(nats(evaluate("--seqlen 40 --stride 10")), one);
}

TEST_F(LanguageModel, IsComparedWithAReference) {
  const std::string reference = " --reference " + shipped("decoders/llama");
  const json same = report_of(evaluate("--seqlen 32 --compute bf16" + reference))["comparison"]["reference"];
  EXPECT_EQ(same["kl_divergence"]["max"], 0.0);
  EXPECT_EQ(same["same_top1"]["value"], 1.0);
  const Outcome table = run_mcompress(evaluate("--seqlen 32" + reference));
  EXPECT_TRUE(contains(table.out, "KL divergence 0.00000")) << table.out;
  EXPECT_TRUE(contains(table.out, "same first token for 100.00 %")) << table.out;
}

TEST_F(LanguageModel, IsMeasuredFromAGgufFile) {
  const json report = report_of("evaluate " + shipped("gguf/llama.gguf") + " --eval-data " +
                                (folder_ / "text.txt") + " --seqlen 32 --reference " + (folder_ / "model"));
  EXPECT_EQ(report["input"]["format"], "gguf");
  EXPECT_EQ(report["input"]["parameters"], 11088);
  EXPECT_LT(report["comparison"]["reference"]["kl_divergence"]["mean"].get<double>(), 1e-3);
}

TEST_F(LanguageModel, RunsWithoutTextOnRandomTokens) {
  const std::string run =
      "evaluate " + shipped("decoders/qwen3") + " --eval-data random-tokens --seqlen 16 --windows 3";
  const json first = report_of(run)["metrics"]["before"]["perplexity"];
  EXPECT_EQ(first["tokens"], 45);
  EXPECT_EQ(report_of(run)["metrics"]["before"]["perplexity"]["nats"], first["nats"]);
  EXPECT_NE(report_of(run + " --seed 1")["metrics"]["before"]["perplexity"]["nats"], first["nats"]);
}

TEST_F(LanguageModel, IsRefusedWithWhatIsWrong) {
  write_file(folder_ / "short.txt", "Hello.");
  write_file(folder_ / "latin.txt", "caf\xe9");
  expect_all({
      {evaluate("--seqlen 1"), 2, "--seqlen"},
      {evaluate("--seqlen 1000"), 2, "--seqlen 1000 is beyond the 128 positions of"},
      {evaluate("--seqlen 16 --stride 17"), 2, "--stride 17 is beyond --seqlen 16"},
      {evaluate("", "short.txt"), 65, "fewer than one window of --seqlen 128"},
      {evaluate("", "latin.txt"), 65, "not UTF-8 at byte 3"},
      {evaluate("", "none.txt"), 66, "none.txt' does not exist"},
      {evaluate("--reference " + shipped("decoders/qwen3")), 65, "448 tokens and the reference's 96"},
      {"evaluate " + shipped("decoders/llama") + " --eval-data " + (folder_ / "text.txt"), 66,
       "has no tokenizer"},
      {evaluate("--mean 0.5"), 2, "--mean is for images and tables"},
      {"evaluate " + shipped("decoders/llama") + " --eval-data random-tokens --windows 1000000000", 2,
       "pass at most"},
      {"evaluate " + shipped("fashion_mlp.pt") + " --eval-data x --windows 3", 2,
       "--windows is for language models"},
  });
}

TEST(RealModels, TinyLmHasItsKnownPerplexity) {
  if (test_data().empty()) GTEST_SKIP() << "MCOMPRESS_TEST_DATA is not set";
  const std::string folder = test_data() + "/tiny-lm";
  const auto perplexity = [&](const std::string& compute) {
    return report_of("evaluate " + folder + " --eval-data " + folder +
                     "/heldout.txt --seqlen 256 --windows 60 --compute " +
                     compute)["metrics"]["before"]["perplexity"]["value"]
        .get<double>();
  };
  EXPECT_NEAR(perplexity("fp32"), 43.18, 0.001 * 43.18);
  EXPECT_NEAR(perplexity("bf16"), 43.18, 0.01 * 43.18);
}

}  // namespace
}  // namespace mcompress::testing
