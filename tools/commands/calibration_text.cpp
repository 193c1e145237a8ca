#include "calibration_text.h"

#include <filesystem>

#include <ATen/ATen.h>

#include "mcompress/methods/hessian.h"
#include "mcompress/model/int8_matrix.h"
#include "models.h"
#include "resume.h"

namespace mcompress::cli {

void add_calibration_options(CLI::App& app, CalibrationOptions& options, const std::string& group) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(group);
  };
  add("--calib-data,--dataset", options.calib_data,
      "What the model is run on: text (.txt, .gz, .jsonl) or token ids (.npy, .bin, .safetensors); for "
      "TorchScript data as for --eval-data, or one .npy; of a folder the train split");
  add_nsamples(app, options.nsamples);
  add("--seqlen", options.seqlen, "Tokens of a sample of text")->check(CLI::Range(2, 1 << 24));
  add("--calib-layout", options.calib_layout, "As --text-layout, for --calib-data")
      ->check(CLI::IsMember({"file", "rows"}));
  add("--calib-compute", options.calib_compute,
      "Products with which the model is run on it; int8 has a scale for 64 values; auto: int8, bf16 or fp32, "
      "the first that the processor has instructions for")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "int8"}));
}

namespace {

std::string name_of(const DecoderCompute& compute) {
  return compute.int8_layers ? "int8" : compute.type == at::kFloat ? "float32" : "bfloat16";
}

}  // namespace

CalibrationTypes calibration_types(const CalibrationOptions& options) {
  const std::string& asked = options.calib_compute;
  if (asked == "fp32") return {at::kFloat, at::kFloat};
  if (asked == "int8" || (asked == "auto" && multiplies_int8())) return {{at::kFloat, true}, at::kBFloat16};
  const bool narrow = asked == "bf16" || multiplies_bfloat16();
  return {narrow ? at::kBFloat16 : at::kFloat, at::kBFloat16};
}

at::Tensor read_calibration_text(const CompressOptions& options, const CalibrationOptions& calibration,
                                 const DecoderConfig& config, const RunOptions& run, Report& report) {
  const std::string& path = calibration.calib_data;
  report.calibration->path = path;
  report.calibration->compute = name_of(calibration_types(calibration).compute);
  if (path.empty()) return {};
  TextCommand text;
  text.layout = calibration.calib_layout;
  text.field = options.text.field;
  text.seqlen = calibration.seqlen;
  const TokenWindows windows = timed(report, "read calibration data", [&] {
    return read_windows(options.model, text, path, calibration.nsamples, config, run);
  });
  const int64_t count = windows.ids.size(0);
  if (count < calibration.nsamples)
    report.warnings.push_back(fmt::format("'{}' has {} samples of {} tokens, and --nsamples asks for {}",
                                          path, count, calibration.seqlen, calibration.nsamples));
  if (windows.ids.min().item<int64_t>() == windows.ids.max().item<int64_t>())
    throw bad_data("'{}' is one token again and again, {}, which tells nothing about the model's inputs",
                   path, windows.ids[0][0].item<int64_t>());
  report.calibration->samples = windows.ids.size(0);
  report.calibration->length = windows.ids.size(1);
  return windows.ids;
}

std::string hash_of_text(const std::string& path) {
  return std::filesystem::exists(path) ? hash_of_data(path) : path;
}

}  // namespace mcompress::cli
