#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

constexpr const char* kData = "/usr/share/datasets/fashion-mnist";

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Quantize, MlpShrinksAndKeepsItsAccuracy) {
  const TemporaryFolder folder;
  const Outcome run = run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") +
                                    " --report - --eval-data " + kData);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json report = json::parse(run.out);
  EXPECT_EQ(report["schema_version"], 1);
  EXPECT_EQ(report["metrics"]["before"]["top1"]["count"], 8974);
  EXPECT_NEAR(report["metrics"]["after"]["top1"]["value"].get<double>(), 0.8974, 0.001);
  EXPECT_GE(report["size_ratio"].get<double>(), 3.9);
  EXPECT_GE(report["metrics"]["agreement"].get<double>(), 0.99);
  EXPECT_EQ(report["output"]["bytes"], std::filesystem::file_size(folder / "q.pt"));
}

TEST(Quantize, PortableRuntimeGivesTheSameClasses) {
  const TemporaryFolder folder;
  const Outcome run = run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") +
                                    " --runtime portable --limit 1000 --report - --eval-data " + kData);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_GE(json::parse(run.out)["metrics"]["agreement"].get<double>(), 0.99);
}

TEST(Quantize, CnnKeepsItsConvolutionsAndSaysWhy) {
  const TemporaryFolder folder;
  const Outcome run =
      run_mcompress("quantize " + shipped("fashion_cnn.pt") + " -o " + (folder / "q.pt") + " --report -");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  for (const json& layer : json::parse(run.out)["layers"]) {
    if (layer["kind"] == "conv2d") {
      EXPECT_EQ(layer["reason"], "dynamic mode treats no convolutions");
    }
  }
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

TEST(Quantize, FailedGateExitsWith3AndStillWrites) {
  const TemporaryFolder folder;
  const Outcome run = run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") +
                                    " --min-size-ratio 9");
  EXPECT_EQ(run.exit_code, 3);
  EXPECT_TRUE(contains(run.err, "gate min_size_ratio failed")) << run.err;
  EXPECT_TRUE(std::filesystem::exists(folder / "q.pt"));
}

TEST(Quantize, DryRunWritesNothing) {
  const TemporaryFolder folder;
  const Outcome run =
      run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") + " --dry-run");
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_TRUE(contains(run.out, "fc1")) << run.out;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Quantize, FullDiskExitsWith74AndLeavesNoStub) {
  const TemporaryFolder folder;
  const std::string command = std::string("ulimit -f 64; ") + MCOMPRESS_BINARY + " quantize " +
                              shipped("fashion_mlp.pt") + " -o " + (folder / "q.pt") + " 2>/dev/null";
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 74);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Messages, NameTheThingAndTheRemedy) {
  const TemporaryFolder folder;
  write_file(folder / "empty", "");
  write_file(folder / "old", "x");
  const std::string mlp = shipped("fashion_mlp.pt");
  struct Case {
    std::string arguments;
    int exit_code;
    std::string words;
  };
  const std::vector<Case> cases = {
      {"", 2, "name a command"},
      {"quantise", 2, "quantise"},
      {"quantize --no-such-flag", 2, "see mcompress --help"},
      {"quantize " + mlp, 2, "--output is required"},
      {"quantize " + mlp + " -o " + (folder / "q") + " --mode turbo", 2, "turbo"},
      {"quantize " + mlp + " -o " + (folder / "q") + " --ignore nothing", 2, "matches no layer"},
      {"quantize " + mlp + " -o " + (folder / "q") + " --layer '('", 2, "not a regular expression"},
      {"quantize " + mlp + " -o " + (folder / "q") + " --ignore .", 65,
       "no layer that dynamic mode can quantize"},
      {"quantize " + mlp + " -o " + (folder / "q") + " --max-accuracy-drop 0.1", 2, "needs --eval-data"},
      {"quantize " + mlp + " -o " + (folder / "old"), 73, "use --force"},
      {"quantize " + mlp + " -o " + mlp + " --force", 73, "is the input"},
      {"quantize " + mlp + " -o " + (folder / "no/q"), 73, "does not exist"},
      {"quantize " + mlp + " -o " + (folder / "q") + " --eval-data " + (folder / "no"), 66, "does not exist"},
      {"quantize " + mlp + " -o " + (folder / "q") + " --eval-data " + (folder / "empty"), 65,
       "no data set that is known"},
      {"quantize " + mlp + " -o " + (folder / "q") + " --mean 1,2 --eval-data " + kData, 2, "1 channels"},
      {"inspect " + (folder / "no"), 66, "No such file"},
      {"inspect " + (folder / "empty"), 65, "is empty"},
      {"inspect " + folder.path(), 65, "no config.json"},
      {"evaluate " + (folder / "old") + " --eval-data " + kData, 65, "no model that is known"}};
  for (const Case& c : cases) {
    const Outcome run = run_mcompress(c.arguments);
    EXPECT_EQ(run.exit_code, c.exit_code) << c.arguments << "\n" << run.err;
    EXPECT_TRUE(contains(run.err, c.words)) << c.arguments << "\n" << run.err;
    EXPECT_EQ(run.out, "") << c.arguments;
  }
}

TEST(RealModels, ResNetsEvaluateToTheirKnownAccuracy) {
  const char* data = std::getenv("MCOMPRESS_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "MCOMPRESS_TEST_DATA is not set";
  const std::string base(data);
  const std::string options =
      " --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --report - --limit 500 --data " + base +
      "/cifar10/test_batch.bin";
  const Outcome resnet20 = run_mcompress("evaluate " + base + "/resnet/resnet20-cifar10.pt" + options);
  ASSERT_EQ(resnet20.exit_code, 0) << resnet20.err;
  EXPECT_EQ(json::parse(resnet20.out)["metrics"]["top1"]["count"], 455);
  const Outcome resnet56 = run_mcompress("evaluate " + base + "/resnet/resnet56-cifar10.pt" + options);
  ASSERT_EQ(resnet56.exit_code, 0) << resnet56.err;
  EXPECT_EQ(json::parse(resnet56.out)["metrics"]["top1"]["count"], 470);
}

TEST(RealModels, LegacyCheckpointQuantizesToSafetensors) {
  const char* data = std::getenv("MCOMPRESS_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "MCOMPRESS_TEST_DATA is not set";
  const TemporaryFolder folder;
  const Outcome run = run_mcompress("quantize " + std::string(data) + "/resnet/resnet20-cifar10.th -o " +
                                    (folder / "q.safetensors") + " --report -");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json report = json::parse(run.out);
  EXPECT_EQ(report["layers"].size(), 20U);  // 19 convolutions stay, one linear layer is quantized
  const json listed = json::parse(run_mcompress("inspect --json " + (folder / "q.safetensors")).out);
  EXPECT_EQ(listed["layers"].size(), 98U);
  const auto& layers = listed["layers"];
  const auto weight =
      std::find_if(layers.begin(), layers.end(), [](const json& l) { return l["name"] == "linear.weight"; });
  const auto scale = std::find_if(layers.begin(), layers.end(),
                                  [](const json& l) { return l["name"] == "linear.weight_scale"; });
  ASSERT_TRUE(weight != layers.end() && scale != layers.end());
  EXPECT_EQ((*weight)["kind"], "I8");
  EXPECT_EQ((*scale)["shape"], json::parse("[10,1]"));
}

TEST(RealModels, LegacyCheckpointIsListed) {
  const char* data = std::getenv("MCOMPRESS_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "MCOMPRESS_TEST_DATA is not set";
  const Outcome run = run_mcompress("inspect --json " + std::string(data) + "/resnet/resnet20-cifar10.th");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json result = json::parse(run.out);
  EXPECT_EQ(result["format"], "legacy_state_dict");
  EXPECT_EQ(result["layers"].size(), 97U);
  EXPECT_EQ(result["layers"][0]["name"], "conv1.weight");
}

}  // namespace
}  // namespace mcompress::testing
