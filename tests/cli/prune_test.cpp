#include <algorithm>
#include <limits>

#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

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
  const std::vector<Case> cases = {
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
  expect_all(cases, folder / "p");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Prune, FullDiskLeavesNoStub) {
  const TemporaryFolder folder;
  const Outcome run = run_mcompress(
      "prune " + shipped("fashion_mlp.pt") + " --sparsity 0.1 -o " + (folder / "p.pt"), "ulimit -f 64;");
  EXPECT_EQ(run.exit_code, 74) << run.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Prune, StoresExpandToTheDenseFile) {
  const TemporaryFolder folder;
  for (const char* model : {"fashion_mlp.pt", "state_dicts/nested.pt"}) {
    const std::string run = "prune " + shipped(model) + " --force --sparsity 0.9 -o ";
    const json dense = report_of(run + (folder / "dense"));
    EXPECT_EQ(dense["storage"]["store"], "dense");
    for (const char* store : {"bitmask", "bitmask+zstd", "auto"}) {
      const json report = report_of(run + (folder / "stored") + " --store " + store);
      EXPECT_EQ(report["storage"]["dense_bytes"], dense["output"]["bytes"]);
      EXPECT_EQ(report["storage"]["stored_bytes"], report["output"]["bytes"]);
      EXPECT_LT(report["output"]["bytes"], dense["output"]["bytes"]);
      EXPECT_EQ(report["output"]["nonzeros"], dense["output"]["nonzeros"]);
      const json expanded = report_of("expand " + (folder / "stored") + " --force -o " + (folder / "back"));
      EXPECT_EQ(expanded["output"]["sha256"], dense["output"]["sha256"]) << model << " " << store;
      EXPECT_EQ(expanded["output"]["format"], dense["output"]["format"]);
    }
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 3);  // no stubs
}

TEST(Prune, ExpandingADenseFileCopiesIt) {
  const TemporaryFolder folder;
  for (const char* model : {"fashion_mlp.pt", "state_dicts/plain.pt"}) {
    const Outcome run = run_mcompress("expand " + shipped(model) + " --force -o " + (folder / "e"));
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_TRUE(contains(run.err, "is dense already")) << run.err;
    EXPECT_EQ(read_file(folder / "e"), read_file(shipped(model)));
  }
}

TEST(Prune, WhatIsStoredIsPrunedAgainOrRefused) {
  const TemporaryFolder folder;
  const std::string run = "prune " + shipped("fashion_mlp.pt") + " --sparsity 0.5 --store bitmask -o ";
  report_of(run + (folder / "s"));
  const json again = report_of("prune " + (folder / "s") + " --sparsity 0.9 -o " + (folder / "d"));
  const json once = report_of("prune " + shipped("fashion_mlp.pt") + " --sparsity 0.9 -o " + (folder / "o"));
  EXPECT_EQ(again["output"]["sha256"], once["output"]["sha256"]);
  EXPECT_EQ(report_of("quantize " + (folder / "s") + " -o " + (folder / "q"))["layers"][0]["decision"],
            "int8");
  report_of("prune " + shipped("state_dicts/nested.pt") + " --sparsity 0.9 --store bitmask -o " +
            (folder / "n"));
  for (const char* command : {"prune --sparsity 0.9 ", "quantize "}) {
    const Outcome refused = run_mcompress(command + (folder / "n") + " -o " + (folder / "x"));
    EXPECT_EQ(refused.exit_code, 65);
    EXPECT_TRUE(contains(refused.err, "run 'mcompress expand' on it first")) << refused.err;
  }
}

TEST(Prune, MlpShrinksAsTheBitmaskPromises) {
  const TemporaryFolder folder;
  const std::string run =
      "prune " + shipped("fashion_mlp.pt") + " --force --store bitmask -o " + (folder / "p");
  EXPECT_GE(report_of(run + " --sparsity 0.5")["size"]["ratio"].get<double>(), 1.85);
  EXPECT_GE(report_of(run + " --sparsity 0.9")["size"]["ratio"].get<double>(), 7.0);
}

TEST(Prune, WeighsByTheInputs) {
  const TemporaryFolder folder;
  const std::string run = "prune " + shipped("fashion_mlp.pt") + " --force --calib-data " + kFashion +
                          " --nsamples 64 --sparsity 0.5 -o ";
  for (const char* threads : {"1", "2"}) {
    const json report = report_of(run + (folder / threads) + " --criterion wanda -t " + threads);
    EXPECT_EQ(layer_named(report, "fc1")["zeros"], 448 * 392);
  }
  EXPECT_EQ(read_file(folder / "1"), read_file(folder / "2"));
  EXPECT_EQ(report_of(run + (folder / "2") + " --criterion activation --scope global")["pruning"]["sparsity"],
            0.5);
}

TEST(Prune, SweepWritesItsNumbersAndAPage) {
  const TemporaryFolder folder;
  const std::string run = "prune " + shipped("fashion_cnn.pt") + " --sweep 0.2:0.8:0.3 --eval-data " +
                          kFashion + " --limit 500 --force --html " + (folder / "s.html");
  const json report = report_of(run + " --per-layer");
  ASSERT_EQ(report["sweep"].size(), 9U);  // 3 of the whole and of each linear layer
  EXPECT_EQ(report["sweep"][1]["target"], 0.5);
  EXPECT_EQ(report["sweep"][1]["layer"], nullptr);
  EXPECT_NEAR(report["sweep"][1]["sparsity"].get<double>(), 0.5, 1e-3);
  EXPECT_LT(report["sweep"][2]["stored_bytes"], report["sweep"][0]["stored_bytes"]);
  EXPECT_EQ(report["sweep"][3]["layer"], "fc1");
  // The last row is what pruning that layer alone gives.
  const json alone =
      report_of("prune " + shipped("fashion_cnn.pt") + " --layer fc2 --sparsity 0.8 --eval-data " + kFashion +
                " --limit 500 -o " + (folder / "p"));
  EXPECT_EQ(report["sweep"][8]["top1"]["count"], alone["metrics"]["after"]["top1"]["count"]);
  const std::string page = read_file(folder / "s.html");
  EXPECT_TRUE(contains(page, "<svg ") && contains(page, "</html>") && contains(page, "fc2"));
  EXPECT_FALSE(contains(page, "src=") || contains(page, "href="));
  EXPECT_TRUE(contains(run_mcompress(run).out, "sparsity      top-1"));
}

TEST(Prune, RefusalsOfStoresSweepsAndInputs) {
  const TemporaryFolder folder;
  const std::string mlp = "prune " + shipped("fashion_mlp.pt") + " -o " + (folder / "p") + " --sparsity 0.5";
  const std::string sweep = "prune " + shipped("fashion_mlp.pt") + " --sweep ";
  const std::string weights = "prune " + shipped("state_dicts/plain.pt") + " ";
  write_file(folder / "cut", read_file(shipped("fashion_mlp.pt")).substr(0, 1000));
  write_file(folder / "zstd", std::string("\x28\xb5\x2f\xfd\x04\x58\x29", 7));
  const std::string npy_header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  const auto npy = [&](const std::string& shape, size_t bytes) {
    std::string header = npy_header + shape + "), }";
    header.resize(117, ' ');
    return std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + "\n" + std::string(bytes, '\0');
  };
  write_file(folder / "none.npy", npy("0, 784", 0));
  write_file(folder / "wrong.npy", npy("2, 100", 800));
  std::string nan = npy("1, 784", 784 * 4);
  nan.replace(nan.size() - 4, 4, std::string("\x00\x00\xc0\x7f", 4));
  write_file(folder / "nan.npy", nan);
  const std::string out = " -o " + (folder / "p");
  const std::vector<Case> cases = {
      {mlp + " --store zip", 2, "zip"},
      {mlp + " --criterion wanda", 2, "--criterion wanda needs --calib-data"},
      {mlp + " --calib-data x", 2, "--calib-data goes with --criterion wanda or activation"},
      {mlp + " --criterion wanda --scope global --calib-data x", 2, "compares inside each row"},
      {mlp + " --criterion wanda --calib-data " + (folder / "no"), 66, "does not exist"},
      {mlp + " --criterion wanda --calib-data " + (folder / "none.npy"), 65, "holds no samples"},
      {mlp + " --criterion wanda --calib-data " + (folder / "wrong.npy"), 65, "the model fails on this data"},
      {mlp + " --criterion wanda --calib-data " + (folder / "nan.npy"), 65, "is given NaN or infinity"},
      {mlp + " --criterion wanda --nsamples 0 --calib-data x", 2, "'0' is no whole number from 1"},
      {weights + out + " --sparsity 0.5 --criterion wanda --calib-data x", 2, "cannot be used; use l1"},
      {sweep + "0.1:0.9", 2, "is not FROM:TO:STEP"},
      {sweep + "0.9:0.1:0.1", 2, "is not FROM:TO:STEP"},
      {sweep + "0:1:0", 2, "is not FROM:TO:STEP"},
      {sweep + "0:1:0.00001", 2, "is not FROM:TO:STEP"},
      {sweep + "0:1:x", 2, "'x' is no fraction"},
      {sweep + "0:1:0.5" + out, 2, "writes no model"},
      {sweep + "0:1:0.5 --min-size-ratio 2", 2, "writes no model"},
      {sweep + "0:1:0.5 --sparsity 0.5", 2, "--sweep names the sparsities"},
      {sweep + "0:1:0.5 --html " + (folder / "cut"), 73, "use --force"},
      {mlp + " --per-layer", 2, "goes with --sweep"},
      {mlp + " --html x.html", 2, "--html goes with --sweep or --finetune"},
      {weights + "--sweep 0:1:0.5", 2, "which --sweep could measure"},
      {sweep + "0:1:0.5 --store bitmask", 2, "leave out --store"},
      {"expand " + (folder / "cut") + out, 65, "no central directory"},
      {"expand " + (folder / "zstd") + out, 65, "zstd"},
      {"expand " + (folder / "no") + out, 66, "No such file"},
      {"expand " + (folder / "cut") + " --force -o " + (folder / "cut"), 73, "is the input"},
      {"inspect " + (folder / "zstd"), 65, "mcompress expand"}};
  expect_all(cases, folder / "p");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 5);  // no stubs
}

TEST(Prune, NanIsNamedAndInfinityStays) {
  const TemporaryFolder folder;
  const std::string header = R"({"fc.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]}})";
  std::vector<float> values = {1, -2, 3, 4, 5, 6, 7, std::numeric_limits<float>::infinity()};
  const auto write = [&](const std::string& name) {
    const uint64_t size = header.size();
    write_file(folder / name, std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + header +
                                  std::string(reinterpret_cast<const char*>(values.data()), 32));
  };
  write("inf");
  EXPECT_EQ(report_of("prune " + (folder / "inf") + " --count 7 -o " + (folder / "p"))["pruning"]["zeros"],
            7);
  values[2] = std::numeric_limits<float>::quiet_NaN();
  write("nan");
  for (const char* how :
       {"--count 2", "--pattern 2:4", "--pattern channels-zero --count 1", "--sparsity 0"}) {
    const Outcome run = run_mcompress("prune " + (folder / "nan") + " -o " + (folder / "n") + " " + how);
    EXPECT_EQ(run.exit_code, 65) << how;
    EXPECT_TRUE(contains(run.err, "weight of layer 'fc.weight' holds")) << run.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "n"));
  }
}

TEST(Prune, KilledAtAnyTimeLeavesTheTargetAbsentOrComplete) {
  const TemporaryFolder folder;
  const std::string run = "prune " + shipped("fashion_mlp.pt") + " --sparsity 0.5 --store bitmask -o ";
  ASSERT_EQ(run_mcompress(run + (folder / "whole")).exit_code, 0);
  for (int milliseconds = 150; milliseconds <= 400; milliseconds += 25) {
    run_mcompress(run + (folder / "killed"), fmt::format("timeout -s KILL 0.{}", milliseconds));
    if (!std::filesystem::exists(folder / "killed")) continue;
    EXPECT_EQ(read_file(folder / "killed"), read_file(folder / "whole"));
    std::filesystem::remove(folder / "killed");
  }
  EXPECT_EQ(run_mcompress(run + (folder / "killed")).exit_code, 0);
}

}  // namespace
}  // namespace mcompress::testing
