#include "gptq_language.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "mcompress/base/interrupt.h"
#include "mcompress/base/output.h"
#include "mcompress/methods/decoder_gptq.h"
#include "mcompress/methods/hessian.h"
#include "mcompress/model/checkpoint.h"
#include "models.h"
#include "resume.h"

namespace mcompress::cli {

namespace {

// The types in which products of the calibration run are computed and its states are held.
struct CalibrationTypes {
  at::ScalarType compute, states;
};

CalibrationTypes calibration_types(const GptqCommand& options) {
  if (options.calib_compute == "fp32") return {at::kFloat, at::kFloat};
  const bool narrow = options.calib_compute == "bf16" || multiplies_bfloat16();
  return {narrow ? at::kBFloat16 : at::kFloat, at::kBFloat16};
}

std::string type_name(at::ScalarType type) { return type == at::kFloat ? "float32" : "bfloat16"; }

// Which layers are rounded and how, which the format has a say in.
std::string text_of(const std::map<std::string, GroupGrid>& grids) {
  std::string text;
  for (const auto& [name, grid] : grids) text += fmt::format("{} {} {}\n", name, grid.bits, grid.group_size);
  return text;
}

// Of the file; random tokens are told by the seed, which is a setting.
std::string hash_of_text(const std::string& path) {
  return std::filesystem::exists(path) ? hash_of_data(path) : path;
}

// What would stop the run late: weights that are not finite, and values that GPTQ's format has no number for.
void check_values(const CheckpointFiles& checkpoint, const LanguagePlan& plan, const GptqCommand& options) {
  constexpr double kLargestHalf = 65504;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const bool rounded =
        array.name.ends_with(".weight") && plan.grids.contains(array.name.substr(0, array.name.rfind('.')));
    if (!is_floating(array.dtype) || array.bytes.empty() || (!rounded && options.format != "gptq")) continue;
    check_interrupt();
    const at::Tensor values = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
    const double largest = std::max(values.max().item<double>(), -values.min().item<double>());
    checkpoint.files[checkpoint.file_of[i]]->drop(array.bytes);
    if (rounded && !std::isfinite(largest))
      throw bad_data("tensor '{}' holds NaN or infinity; repair the model or leave it out with --ignore",
                     array.name);
    if (!rounded && !(largest <= kLargestHalf))
      throw bad_data(
          "tensor '{}' has values beyond float16, in which GPTQ's readers compute; use --format dequantized",
          array.name);
  }
}

// Windows of --calib-data.
at::Tensor read_calibration_text(const GptqCommand& options, const DecoderConfig& config,
                                 const RunOptions& run, Report& report) {
  TextCommand text;
  text.layout = options.calib_layout;
  text.field = options.text.field;
  text.seqlen = options.seqlen;
  const TokenWindows windows = timed(report, "read calibration data", [&] {
    return read_windows(options.model, text, options.calib_data, options.nsamples, config, run);
  });
  const int64_t count = windows.ids.size(0);
  if (count < options.nsamples)
    report.warnings.push_back(fmt::format("'{}' has {} samples of {} tokens, and --nsamples asks for {}",
                                          options.calib_data, count, options.seqlen, options.nsamples));
  if (windows.ids.min().item<int64_t>() == windows.ids.max().item<int64_t>())
    throw bad_data("'{}' is one token again and again, {}, which tells nothing about the model's inputs",
                   options.calib_data, windows.ids[0][0].item<int64_t>());
  return windows.ids;
}

}  // namespace

void gptq_language(const GptqCommand& options, const RunOptions& run, Report& report) {
  if (!options.output.empty()) check_output(options.output, OutputKind::kFolder, run.force, run.inputs);
  BackgroundHash hash(options.model);
  const CheckpointFiles checkpoint =
      timed(report, "load", [&] { return read_checkpoint(options.model, ModelFormat::kHuggingFace); });
  report.warnings = checkpoint.notes;
  const CalibrationTypes types = calibration_types(options);
  const Decoder model = timed(report, "load model", [&] { return Decoder(options.model, types.compute); });
  const DecoderConfig& config = model.config();
  if (!config.quantization.empty())
    throw bad_data("'{}' is quantized already ({}); pass the model as it was before", options.model,
                   config.quantization);
  const LanguagePlan plan = plan_language(config, checkpoint, options);
  timed(report, "check weights", [&] { check_values(checkpoint, plan, options); });
  report.calibration.emplace();
  report.calibration->path = options.calib_data;
  report.calibration->compute = type_name(types.compute);
  at::Tensor ids;
  if (!options.calib_data.empty()) {
    ids = read_calibration_text(options, config, run, report);
    report.calibration->samples = ids.size(0);
    report.calibration->length = ids.size(1);
  }
  const auto text = open_text(options, ModelFormat::kHuggingFace, run, report);
  evaluate_input(options, report);
  const GptqFolder folder = folder_of(plan, config, options);
  warn_of_readers(plan, folder, options, report);
  report.predicted_bytes = options.format == "gptq"
                               ? predict_gptq_folder_bytes(checkpoint, options.model, folder)
                               : bytes_on_disk(options.model);
  report.input = describe_artifact(options.model, name_of(ModelFormat::kHuggingFace),
                                   count_checkpoint(checkpoint), hash);
  if (options.dry_run) {
    add_records(plan, options, config, "", report);
    return finish_dry_run(run, report);
  }
  // The output and, while the run lasts, a byte a weight.
  uint64_t state_bytes = 0;
  for (const GroupedLayer& layer : plan.layers)
    state_bytes += static_cast<uint64_t>(layer.outputs * layer.inputs);
  check_output(options.output, OutputKind::kFolder, run.force, run.inputs,
               *report.predicted_bytes + state_bytes);
  const CheckpointOptions state = open_checkpoint(
      options.output, OutputKind::kFolder, options.resume,
      {hash.get(), hash_of_text(options.calib_data), text_of(plan.grids), type_name(types.compute)}, run,
      report);
  warn_of_fresh_start(state, report);
  if (!options.resume) remove_rounded_blocks(state.path);
  const DecoderGptqPlan method = {method_options(options), plan.grids, options.true_sequential, types.states};
  report.calibration->blocks_kept =
      timed(report, "gptq", [&] { return gptq_decoder(model, ids, method, state); });
  write_output(options, run, checkpoint, plan, config, state.path, report);
  add_records(plan, options, config, state.path, report);
  remove_rounded_blocks(state.path);
  report.output = describe_artifact(options.output,
                                    options.format == "gptq" ? "gptq" : name_of(ModelFormat::kHuggingFace),
                                    {report.input->parameters, {}});
  if (text) text->compare(options.output, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
