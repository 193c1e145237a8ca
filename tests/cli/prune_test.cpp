#include <algorithm>

#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

json layer_named(const json& report, const std::string& name) {
  for (const json& layer : report["layers"]) {
    if (layer["name"] == name) return layer;
  }
  return {};
}

TEST(Prune, HalfOfTheMlpIsZeroAndStillKnowsItsClasses) {
  const TemporaryFolder folder;
  const json report = report_of("prune " + shipped("fashion_mlp.pt") + " -o " + (folder / "p.pt") +
                                " --sparsity 0.5 --eval-data " + kFashion);
  EXPECT_EQ(report["pruning"]["weights"], 784 * 448 + 448 * 10);
  EXPECT_EQ(report["pruning"]["zeros"], (784 * 448 + 448 * 10) / 2);
  EXPECT_EQ(layer_named(report, "fc2")["zeros"], 2240);
  EXPECT_GE(report["metrics"]["after"]["top1"]["value"].get<double>(), 0.88);
  EXPECT_EQ(report["output"]["parameters"].get<int>() - report["output"]["nonzeros"].get<int>(),
            report["pruning"]["zeros"].get<int>());
}

TEST(Prune, EveryFormatStaysWhatItIsAndChangesOnlyItsWeights) {
  const TemporaryFolder folder;
  for (const char* name :
       {"plain.pt", "nested.pt", "legacy.pth", "transposed.pt", "half.pt", "parameters.pt"}) {
    const std::string target = folder / name;
    const json report =
        report_of("prune " + shipped(std::string("state_dicts/") + name) + " -o " + target + " --count 2");
    EXPECT_EQ(report["output"]["format"], report["input"]["format"]) << name;
    EXPECT_EQ(report["output"]["bytes"], report["input"]["bytes"]) << name;
    EXPECT_EQ(report["pruning"]["zeros"], 2) << name;  // of 0 1 2 / 3 4 5, one was zero before
    EXPECT_EQ(report["output"]["nonzeros"].get<int>() + 1, report["input"]["nonzeros"]) << name;
  }
}

TEST(Prune, SharesOfSingleLayersAndOfAll) {
  const TemporaryFolder folder;
  const std::string run =
      "prune " + shipped("fashion_cnn.pt") + " --types all --force -o " + (folder / "p.pt");
  const json global = report_of(run + " --sparsity 60% --scope global");
  EXPECT_NEAR(global["pruning"]["sparsity"].get<double>(), 0.6, 1e-4);
  const json mixed =
      report_of(run + " --sparsity 0.2 --layer-sparsity '^conv2$=0.9' --layer-sparsity fc=0.1");
  for (const json& layer : mixed["layers"]) {
    const double expected = layer["name"] == "conv2" ? 0.9 : layer["kind"] == "linear" ? 0.1 : 0.2;
    EXPECT_NEAR(layer["zeros"].get<double>() / layer["parameters"].get<double>(), expected, 0.01) << layer;
  }
  const json groups = report_of(run + " --pattern 2:4 --ignore conv1");
  EXPECT_EQ(groups["pruning"]["sparsity"], 0.5);
  const json channels = report_of(run + " --pattern channels-zero --sparsity 0.25 --layer conv");
  EXPECT_NEAR(channels["pruning"]["sparsity"].get<double>(), 0.25, 0.02);
}

TEST(Prune, GivesTheSameBytesForAnyThreadCountAndSeed) {
  const TemporaryFolder folder;
  for (const char* criterion : {"l1", "random"}) {
    for (const char* threads : {"1", "2"}) {
      report_of("prune " + shipped("fashion_mlp.pt") + " --force --seed 7 --sparsity 0.3 --criterion " +
                criterion + " -o " + (folder / threads) + " -t " + threads);
    }
    EXPECT_EQ(read_file(folder / "1"), read_file(folder / "2"));
  }
  report_of("prune " + shipped("fashion_mlp.pt") + " --seed 8 --sparsity 0.3 --criterion random -o " +
            (folder / "other"));
  EXPECT_NE(read_file(folder / "1"), read_file(folder / "other"));
}

TEST(Prune, DryRunWritesNothing) {
  const TemporaryFolder folder;
  for (const char* model : {"fashion_mlp.pt", "state_dicts/plain.pt"}) {
    const Outcome run =
        run_mcompress("prune " + shipped(model) + " -o " + (folder / "p") + " --sparsity 0.5 --dry-run");
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_TRUE(contains(run.out, " prune ")) << run.out;
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  }
}

TEST(Prune, RefusalsNameTheRemedyAndWriteNothing) {
  const TemporaryFolder folder;
  const std::string mlp = "prune " + shipped("fashion_mlp.pt") + " -o " + (folder / "p");
  const std::string cnn = "prune " + shipped("fashion_cnn.pt") + " --types all -o " + (folder / "p");
  const std::string weights = "prune " + shipped("state_dicts/plain.pt") + " -o " + (folder / "p");
  const std::vector<std::tuple<std::string, int, std::string>> cases = {
      {"prune " + shipped("fashion_mlp.pt"), 2, "needs -o/--output"},
      {mlp, 2, "prune needs --sparsity, --count, --layer-sparsity or --pattern N:M"},
      {mlp + " --sparsity 1.2", 2, "'1.2' is no fraction from 0 to 1"},
      {mlp + " --sparsity nan", 2, "'nan' is no fraction"},
      {mlp + " --amount -0.1", 2, "'-0.1' is no fraction"},
      {mlp + " --count -3", 2, "'-3' is no whole number"},
      {mlp + " --count 3 --sparsity 0.1", 2, "excludes"},
      {mlp + " --count 4481", 2, "--count 4481 is more than the 4480 of layer 'fc2'"},
      {mlp + " --count 999999 --scope global", 2, "is more than the 355712 of all chosen layers"},
      {mlp + " --sparsity 0.1 --pattern 4:2", 2, "0 < N < M"},
      {mlp + " --sparsity 0.1 --pattern 2:4", 2, "have no place"},
      {cnn + " --pattern 2:4", 2,
       "layer 'conv1' has 9 weights an output, which --pattern 2:4 does not divide"},
      {mlp + " --sparsity 0.1 --pattern channels-zero --scope global", 2, "unstructured only"},
      {mlp + " --sparsity 0.1 --layer-sparsity fc", 2, "is not REGEX=SHARE"},
      {mlp + " --sparsity 0.1 --layer-sparsity fc=7", 2, "'7' is no fraction"},
      {mlp + " --sparsity 0.1 --layer-sparsity '(=0.1'", 2, "not a regular expression"},
      {mlp + " --sparsity 0.1 --layer-sparsity none=0.1", 2, "matches no layer that is pruned"},
      {mlp + " --sparsity 0.1 --layer none", 2, "matches no layer"},
      {mlp + " --sparsity 0.1 --types conv", 65, "--types conv leaves it out"},
      {weights + " --sparsity 0.1 --eval-data x", 2, "holds weights without a program"},
      {mlp + " --sparsity 0.1 --criterion l3", 2, "l3"}};
  for (const auto& [arguments, code, words] : cases) {
    const Outcome run = run_mcompress(arguments);
    EXPECT_EQ(run.exit_code, code) << arguments << "\n" << run.err;
    EXPECT_TRUE(contains(run.err, words)) << arguments << "\n" << run.err;
    EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << arguments;
  }
}

TEST(Prune, FullDiskLeavesNoStub) {
  const TemporaryFolder folder;
  const Outcome run = run_mcompress(
      "prune " + shipped("fashion_mlp.pt") + " --sparsity 0.1 -o " + (folder / "p.pt"), "ulimit -f 64;");
  EXPECT_EQ(run.exit_code, 74) << run.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace mcompress::testing
