#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

TEST(Quantize, MlpShrinksAndKeepsItsAccuracy) {
  const TemporaryFolder folder;
  const json report = report_of("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") +
                                " --eval-data " + kFashion);
  EXPECT_EQ(report["metrics"]["before"]["top1"]["count"], 8974);
  EXPECT_GE(report["metrics"]["after"]["top1"]["count"], 8974 - 10);
  EXPECT_GE(report["size"]["ratio"].get<double>(), 3.9);
  EXPECT_GE(report["comparison"]["agreement"]["value"].get<double>(), 0.99);
  EXPECT_EQ(report["output"]["bytes"], std::filesystem::file_size(folder / "q.pt"));
  const double predicted = report["size"]["predicted_bytes"].get<double>();
  EXPECT_NEAR(predicted / report["output"]["bytes"].get<double>(), 1.0, 0.02);
}

TEST(Quantize, EveryRuntimeAndTypeKeepsTheClasses) {
  const TemporaryFolder folder;
  for (const char* flags :
       {"--runtime portable", "--runtime fbgemm", "--per-tensor", "--dtype float16", "--dtype bfloat16"}) {
    const json report = report_of("quantize " + shipped("fashion_mlp.pt") + " --force -o " +
                                  (folder / "q.pt") + " --limit 1000 --eval-data " + kFashion + " " + flags);
    EXPECT_GE(report["comparison"]["agreement"]["value"].get<double>(), 0.985) << flags;
  }
}

TEST(Quantize, CnnKeepsItsConvolutionsAndSaysWhy) {
  const TemporaryFolder folder;
  const json report = report_of("quantize " + shipped("fashion_cnn.pt") + " -o " + (folder / "q.pt"));
  int convolutions = 0;
  for (const json& layer : report["layers"]) {
    if (layer["kind"] != "conv2d") continue;
    ++convolutions;
    EXPECT_EQ(layer["reason"], "dynamic mode treats no convolutions, static mode does");
  }
  EXPECT_EQ(convolutions, 3);
}

TEST(Quantize, GivesTheSameBytesForAnyThreadCount) {
  const TemporaryFolder folder;
  for (const char* threads : {"1", "2"}) {
    ASSERT_EQ(run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / threads) + " -t " +
                            threads)
                  .exit_code,
              0);
  }
  EXPECT_EQ(read_file(folder / "1"), read_file(folder / "2"));
}

TEST(Quantize, FailedGateExitsWith3AndStillWritesModelAndReport) {
  const TemporaryFolder folder;
  const Outcome run = run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") +
                                    " --report " + (folder / "r.json") + " --min-size-ratio 9");
  EXPECT_EQ(run.exit_code, 3);
  EXPECT_TRUE(contains(run.err, "gate --min-size-ratio failed")) << run.err;
  EXPECT_TRUE(std::filesystem::exists(folder / "q.pt"));
  const std::string report = read_file(folder / "r.json");
  EXPECT_EQ(schema_violations(report), "");
  EXPECT_EQ(json::parse(report)["exit_code"], 3);
}

TEST(Quantize, EachGateJudgesItsOwnNumber) {
  const TemporaryFolder folder;
  const std::string run = "quantize " + shipped("fashion_mlp.pt") + " --force -o " + (folder / "q.pt") +
                          " --limit 500 --eval-data " + kFashion;
  const json passed = report_of(
      run + " --max-accuracy-drop 2% --min-agreement 95% --min-size-ratio 3.5 --max-latency-ratio 1000");
  EXPECT_EQ(passed["gates"].size(), 4U);
  EXPECT_EQ(passed["gates"][0]["limit"], 0.02);
  const json failed = report_of(run + " --max-latency-ratio 0.0001", 3);
  EXPECT_EQ(failed["gates"][0]["name"], "max-latency-ratio");
  EXPECT_EQ(failed["gates"][0]["value"], failed["comparison"]["latency_ratio"]);
  const json relative = report_of(run + " --max-accuracy-drop 2% --drop relative");
  EXPECT_EQ(relative["settings"]["drop"], "relative");
}

TEST(Quantize, DryRunPrintsThePlanAndWritesNothing) {
  const TemporaryFolder folder;
  const Outcome run = run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") +
                                    " --ignore fc2 --dry-run");
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_TRUE(contains(run.out, "matched by --ignore")) << run.out;
  EXPECT_TRUE(contains(run.out, "predicted output: ")) << run.out;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Quantize, FullDiskExitsWith74AndLeavesNoStub) {
  const TemporaryFolder folder;
  const Outcome run =
      run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt"), "ulimit -f 64;");
  EXPECT_EQ(run.exit_code, 74) << run.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Quantize, KilledAtAnyTimeLeavesTheTargetAbsentOrComplete) {
  const TemporaryFolder folder;
  ASSERT_EQ(run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "whole.pt")).exit_code,
            0);
  const std::string whole = read_file(folder / "whole.pt");
  int absent = 0;
  for (int milliseconds = 5; milliseconds <= 600; milliseconds += 35) {
    const std::string target = folder / "killed.pt";
    run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + target,
                  fmt::format("timeout -s KILL 0.{:03}", milliseconds));
    if (std::filesystem::exists(target)) {
      EXPECT_EQ(read_file(target), whole);
      std::filesystem::remove(target);
    } else {
      ++absent;
    }
  }
  EXPECT_GT(absent, 0);
  // A stub that a killed run left is no obstacle.
  EXPECT_EQ(
      run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "killed.pt")).exit_code, 0);
}

TEST(Quantize, EvalCommandMeasuresTheFilesItself) {
  const TemporaryFolder folder;
  const std::string score = folder / "score.sh";
  write_file(score,
             "#!/bin/sh\nsize=$(stat -c %s \"$1\")\necho \"{\\\"accuracy\\\": 0.9, \\\"kib\\\": $((size / "
             "1024))}\"\n");
  const json report = report_of("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") +
                                " --max-accuracy-drop 0.1% " + "--eval-command 'sh " + score + " {model}'");
  EXPECT_EQ(report["metrics"]["before"]["custom"]["kib"], 1397);
  EXPECT_EQ(report["metrics"]["after"]["custom"]["kib"], std::filesystem::file_size(folder / "q.pt") / 1024);
  EXPECT_TRUE(report["gates"][0]["passed"]);
}

}  // namespace
}  // namespace mcompress::testing
