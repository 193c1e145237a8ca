#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

const std::string kCalibrated = " --mode static --calib-data " + std::string(kFashion);

std::string quantize(const std::string& model, const std::string& target) {
  return "quantize " + shipped(model) + " -o " + target;
}

TEST(QuantizeStatic, ShippedCnnStaysWithinAFifthOfAPoint) {
  const TemporaryFolder folder;
  const json report =
      report_of(quantize("fashion_cnn.pt", folder / "q.pt") + kCalibrated + " --eval-data " + kFashion);
  EXPECT_EQ(report["metrics"]["before"]["top1"]["count"], 9271);
  EXPECT_GE(report["metrics"]["after"]["top1"]["count"], 9271 - 20);
  EXPECT_GE(report["size"]["ratio"].get<double>(), 3.9);
  EXPECT_EQ(report["quantization"]["folded_norms"], 3);
  EXPECT_LE(report["quantization"]["folding_error"].get<double>(), 1e-5);
  EXPECT_EQ(layer_named(report, "bn1")["decision"], "fold");
  EXPECT_EQ(layer_named(report, "conv2")["input"]["bits"], 8);
  EXPECT_EQ(layer_named(report, "conv2")["input"]["zero_point"], 0);  // after a ReLU
}

TEST(QuantizeStatic, EveryObserverAndWidthKeepsTheClasses) {
  const TemporaryFolder folder;
  const std::string run = quantize("fashion_cnn.pt", folder / "q.pt") + kCalibrated +
                          " --force --limit 1000 --eval-data " + kFashion + " ";
  for (const char* flags :
       {"--observer minmax", "--observer moving-average", "--observer percentile --percentile 99.9",
        "--observer mse", "--per-tensor", "--runtime portable", "--weight-bits 4 --bias-correction",
        "--weight-bits 5 --weight-observer minmax", "--activation-bits 6", "--activation-bits none",
        "--nsamples 64"}) {
    EXPECT_GE(report_of(run + flags)["comparison"]["agreement"]["value"].get<double>(), 0.95) << flags;
  }
}

TEST(QuantizeStatic, GivesTheSameBytesForAnyThreadCountAndTheBytesItPredicts) {
  const TemporaryFolder folder;
  for (const char* threads : {"1", "2"}) {
    ASSERT_EQ(run_mcompress(quantize("fashion_cnn.pt", folder / threads) + kCalibrated +
                            " --weight-bits 4 --bias-correction --observer mse -t " + threads)
                  .exit_code,
              0);
  }
  EXPECT_EQ(read_file(folder / "1"), read_file(folder / "2"));
  const json planned =
      report_of("quantize --dry-run --weight-bits 4 --mode static " + shipped("fashion_cnn.pt"));
  EXPECT_EQ(planned["size"]["ratio"], nullptr);
  const Outcome dry =
      run_mcompress("quantize --dry-run --weight-bits 4 --mode static " + shipped("fashion_cnn.pt"));
  EXPECT_TRUE(contains(dry.out, "predicted output: ")) << dry.out;
  const double printed = std::stod(dry.out.substr(dry.out.find("predicted output: ") + 18));
  EXPECT_NEAR(printed / static_cast<double>(std::filesystem::file_size(folder / "1")), 1.0, 0.02);
  EXPECT_EQ(planned["size"]["predicted_bytes"], printed);
}

TEST(QuantizeStatic, LeavesSlowLayersInFloatAndSaysHowSlow) {
  const TemporaryFolder folder;
  for (const char* mode : {" --mode static", " --mode dynamic"}) {
    const json report = report_of(quantize("fashion_mlp.pt", folder / "q.pt") + mode +
                                  " --force --only-if-faster --calib-data " + kFashion);
    for (const json& layer : report["layers"]) {
      const json timing = layer["timing"];
      ASSERT_FALSE(timing.is_null()) << mode;
      const bool faster = timing["integer_seconds"].get<double>() < timing["float_seconds"].get<double>();
      EXPECT_EQ(layer["decision"], faster ? "int8" : "keep") << layer;
      if (faster) continue;
      EXPECT_TRUE(contains(layer["reason"], "int8 is no faster here: ")) << layer;
    }
  }
}

TEST(QuantizeStatic, RanksLayersAndKeepsTheWorstInFloatUntilTheGateHolds) {
  const TemporaryFolder folder;
  const std::string run = quantize("fashion_cnn.pt", folder / "q.pt") + kCalibrated +
                          " --force --limit 500 --weight-bits 3 --activation-bits 4 --weight-observer minmax "
                          "--eval-data " +
                          kFashion;
  const json ranked = report_of(run + " --sensitivity");
  EXPECT_GT(layer_named(ranked, "conv1")["damage"]["sqnr_db"].get<double>(), 0);
  EXPECT_GT(layer_named(ranked, "conv1")["damage"]["top1"].get<double>(), 0.05);
  const json tuned = report_of(run + " --tune --max-accuracy-drop 1%");
  const json& trials = tuned["quantization"]["trials"];
  ASSERT_GE(trials.size(), 2U);
  EXPECT_EQ(trials[0]["kept"].size(), 0U);
  EXPECT_EQ(trials[0]["passed"], false);
  const double before = tuned["metrics"]["before"]["top1"]["value"];
  EXPECT_GE(tuned["metrics"]["after"]["top1"]["value"].get<double>(), before - 0.01);
  size_t kept = 0;
  for (const json& layer : tuned["layers"]) {
    if (layer["kind"] == "batch_norm" || layer["decision"] != "keep") continue;
    ++kept;
    EXPECT_TRUE(contains(layer["reason"], "kept in float by --tune")) << layer;
  }
  EXPECT_GT(kept, 0U);
  EXPECT_LT(kept, 5U);
}

TEST(QuantizeStatic, TuneThatFindsNothingExitsWith3AndTheBestItFound) {
  const TemporaryFolder folder;
  // A model whose class order no integer grid of two bits keeps, and a gate that allows no loss at all.
  const Outcome run =
      run_mcompress(quantize("fashion_mlp.pt", folder / "q.pt") + kCalibrated +
                    " --limit 200 --activation-bits 4 --weight-bits 2 --weight-observer minmax "
                    "--layer fc1 --tune --max-accuracy-drop 0 --eval-data " +
                    kFashion);
  EXPECT_EQ(run.exit_code, 3) << run.err;
  EXPECT_TRUE(contains(run.err, "--tune found no set of layers")) << run.err;
  EXPECT_TRUE(std::filesystem::exists(folder / "q.pt"));
}

TEST(QuantizeStatic, RefusesWhatDoesNotGoTogether) {
  const TemporaryFolder folder;
  const std::string cnn = quantize("fashion_cnn.pt", folder / "q"), fixed = cnn + kCalibrated;
  expect_all(
      {{cnn + " --mode static", 2, "--mode static needs --calib-data"},
       {cnn + " --mode qat", 2, "--mode qat needs --train-data"},
       {cnn + " --weight-bits 4", 2, "--weight-bits goes with --mode static"},
       {cnn + " --observer mse", 2, "--observer goes with --mode static"},
       {cnn + " --calib-data " + kFashion, 2, "--calib-data goes with --mode static"},
       {cnn + " --only-if-faster", 2, "--only-if-faster needs --calib-data or --eval-data"},
       {cnn + " --train-data " + kFashion, 2, "--train-data goes with --mode qat"},
       {fixed + " --learn-scales", 2, "--learn-scales goes with --mode qat"},
       {fixed + " --dtype float16", 2, "--weight-bits sets the type"},
       {fixed + " --runtime fbgemm", 2, "goes with --mode dynamic"},
       {fixed + " --tune", 2, "--tune needs --max-accuracy-drop and --eval-data"},
       {cnn + " --mode qat --tune --train-data " + kFashion, 2, "go with --mode static"},
       {fixed + " --weight-bits 1", 2, "--weight-bits"},
       {fixed + " --activation-bits 3", 2, "--activation-bits"},
       {fixed + " --percentile 40", 2, "is no number from 50 to 100"},
       {fixed + " --percentile nan", 2, "is no number from 50 to 100"},
       {fixed + " --epochs 3", 2, "--epochs goes with --mode qat"},
       {fixed + " --nsamples 0", 2, "--nsamples"},
       {cnn + " --mode static --calib-data " + (folder / "no"), 66, "does not exist"},
       {quantize("state_dicts/plain.pt", folder / "q") + kCalibrated, 2, "which --mode static must run"}},
      folder / "q");
}

}  // namespace
}  // namespace mcompress::testing
