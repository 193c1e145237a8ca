#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

#define SKIP_WITHOUT_TEST_DATA() \
  if (test_data().empty()) GTEST_SKIP() << "MCOMPRESS_TEST_DATA is not set"

TEST(RealModels, ResNetsHaveTheirKnownAccuracy) {
  SKIP_WITHOUT_TEST_DATA();
  const std::string options = " --limit 500 --data " + test_data() +
                              "/cifar10/test_batch.bin --data-config " + recipe("cifar10.data.toml");
  EXPECT_EQ(report_of("evaluate " + test_data() + "/resnet/resnet20-cifar10.pt" +
                      options)["metrics"]["before"]["top1"]["count"],
            455);
  EXPECT_EQ(report_of("evaluate " + test_data() + "/resnet/resnet56-cifar10.pt" +
                      options)["metrics"]["before"]["top1"]["count"],
            470);
}

// On the first 2,000 test rows; the whole set is measured by hand.
TEST(RealModels, ResNet20KeepsItsAccuracyWithFixedGrids) {
  SKIP_WITHOUT_TEST_DATA();
  const TemporaryFolder folder;
  const std::string run = "quantize " + test_data() + "/resnet/resnet20-cifar10.pt --force -o " +
                          (folder / "q") + " --mode static --limit 2000 --calib-data " + test_data() +
                          "/cifar10/train_5000.bin --eval-data " + test_data() +
                          "/cifar10/test_batch.bin --data-config " + recipe("cifar10.data.toml");
  const auto drop = [](const json& report) {
    return report["metrics"]["before"]["top1"]["value"].get<double>() -
           report["metrics"]["after"]["top1"]["value"].get<double>();
  };
  const json eight = report_of(run);
  EXPECT_LE(drop(eight), 0.003);
  EXPECT_GE(eight["size"]["ratio"].get<double>(), 3.7);
  EXPECT_EQ(eight["quantization"]["folded_norms"], 19);
  const double plain = drop(report_of(run + " --weight-bits 4 --weight-observer minmax"));
  EXPECT_LE(drop(report_of(run + " --weight-bits 4 --bias-correction")), plain * 2 / 3);
}

TEST(RealModels, LegacyCheckpointIsListed) {
  SKIP_WITHOUT_TEST_DATA();
  const json result =
      json::parse(run_mcompress("inspect --json " + test_data() + "/resnet/resnet20-cifar10.th").out);
  EXPECT_EQ(result["format"], "legacy_state_dict");
  EXPECT_EQ(result["layers"].size(), 97U);
  EXPECT_EQ(result["layers"][0]["name"], "conv1.weight");
  EXPECT_EQ(result["notes"][1], "prefix 'module.' removed from every name");
}

TEST(RealModels, LegacyCheckpointQuantizesToSafetensors) {
  SKIP_WITHOUT_TEST_DATA();
  const TemporaryFolder folder;
  const json report =
      report_of("quantize " + test_data() + "/resnet/resnet20-cifar10.th -o " + (folder / "q.safetensors"));
  EXPECT_EQ(report["layers"].size(), 20U);  // 19 convolutions stay, one linear layer is quantized
  EXPECT_EQ(report["size"]["predicted_bytes"], report["output"]["bytes"]);
  const json listed = json::parse(run_mcompress("inspect --json " + (folder / "q.safetensors")).out);
  EXPECT_EQ(listed["layers"].size(), 98U);
  EXPECT_EQ(layer_named(listed, "linear.weight")["dtype"], "I8");
  EXPECT_EQ(layer_named(listed, "linear.weight_scale")["shape"], json::parse("[10,1]"));
}

TEST(RealModels, HuggingFaceFolderStaysOne) {
  SKIP_WITHOUT_TEST_DATA();
  const TemporaryFolder folder;
  const json report = report_of("quantize " + test_data() + "/tiny-lm -o " + (folder / "q"));
  EXPECT_EQ(report["output"]["format"], "huggingface");
  const json config = json::parse(read_file(folder / "q/config.json"));
  EXPECT_EQ(config["quantization_config"]["quant_method"], "compressed-tensors");
  EXPECT_EQ(read_file(folder / "q/tokenizer.json"), read_file(test_data() + "/tiny-lm/tokenizer.json"));
  EXPECT_EQ(
      run_mcompress("quantize " + test_data() + "/tiny-lm -o " + (folder / "e") + " --embeddings").exit_code,
      2);
}

// The perplexities of the prototype that the data folder describes, on its own calibration and windows;
// rounding to nearest gives 43.57, 45.05 and 55.16, and float32 43.18.
TEST(RealModels, TinyLanguageModelKeepsItsPerplexityInFewBits) {
  SKIP_WITHOUT_TEST_DATA();
  const TemporaryFolder folder;
  const std::string text = folder / "brown.txt";
  ASSERT_EQ(std::system(("zcat " + test_data() + "/text/brown.txt.gz | head -c 700000 > " + text).c_str()),
            0);
  const std::string run = "gptq " + test_data() + "/tiny-lm --asym --force -o " + (folder / "q") +
                          " --seqlen 256 --calib-compute fp32 --calib-data " + text + " --eval-data " +
                          test_data() + "/tiny-lm/heldout.txt --eval-seqlen 256 --windows 60 ";
  // On 60 windows the perplexity moves by this with any change of rounding, such as another processor's sums;
  // the divergence from the float model hardly does.
  constexpr double kNoise = 0.05;
  const auto expect = [&](const std::string& options, double perplexity, double divergence) {
    const json report = report_of(run + options);
    EXPECT_LE(report["metrics"]["after"]["perplexity"]["value"].get<double>(), perplexity + kNoise)
        << options;
    EXPECT_LE(report["comparison"]["reference"]["kl_divergence"]["mean"].get<double>(), divergence)
        << options;
  };
  expect("--bits 4 --group-size 128", 43.36, 0.0070);
  expect("--bits 3 --group-size 128", 44.17, 0.029);
  expect("--bits 2 --group-size 64", 49.1, 0.14);
}

// On the first 2,000 test rows.
TEST(RealModels, ResNet20KeepsItsAccuracyByGptq) {
  SKIP_WITHOUT_TEST_DATA();
  const TemporaryFolder folder;
  const std::string run = "gptq " + test_data() + "/resnet/resnet20-cifar10.pt --force -o " +
                          (folder / "q.pt") + " --group-size -1 --nsamples 512 --limit 2000 --calib-data " +
                          test_data() + "/cifar10/train_5000.bin --eval-data " + test_data() +
                          "/cifar10/test_batch.bin --data-config " + recipe("cifar10.data.toml");
  const json four = report_of(run);
  EXPECT_GT(four["metrics"]["after"]["top1"]["value"].get<double>(),
            four["metrics"]["before"]["top1"]["value"].get<double>() - 0.02);
  EXPECT_GT(four["size"]["ratio"].get<double>(), 4);
}

TEST(RealModels, WeightsAreSmallerInEveryStoredType) {
  SKIP_WITHOUT_TEST_DATA();
  const TemporaryFolder folder;
  const std::string run =
      "quantize " + test_data() + "/tiny-lm/model.safetensors --embeddings --force -o " + (folder / "q");
  EXPECT_GT(report_of(run)["size"]["ratio"].get<double>(), 3.8);
  EXPECT_GT(report_of(run + " --per-tensor")["size"]["ratio"].get<double>(), 3.9);
  EXPECT_NEAR(report_of(run + " --dtype bfloat16")["size"]["ratio"].get<double>(), 2.0, 0.02);
  EXPECT_NEAR(report_of(run + " --dtype float16")["size"]["ratio"].get<double>(), 2.0, 0.02);
}

}  // namespace
}  // namespace mcompress::testing
