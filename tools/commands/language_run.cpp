#include "language_run.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "mcompress/base/output.h"
#include "packed_run.h"
#include "resume.h"

namespace mcompress::cli {

namespace {

// Which layers are rounded and how, which the format has a say in.
std::string text_of(const std::map<std::string, GroupGrid>& grids) {
  std::string text;
  for (const auto& [name, grid] : grids) text += fmt::format("{} {} {}\n", name, grid.bits, grid.group_size);
  return text;
}

// Rounds the embedding where that is asked for; the model then runs with it.
std::optional<RoundedLayer> round_embedding(const PackedPlan& plan, Decoder& model) {
  const DecoderNames& names = model.config().names;
  const std::string name = names.base + names.embedding;
  const auto grid = plan.grids.find(name);
  if (grid == plan.grids.end()) return std::nullopt;
  const at::Tensor weight = model.stored(name + ".weight");
  RoundedLayer rounded = describe_rounded(name, weight, round_to_groups(weight, grid->second));
  model.set_embedding(dequantize_rows(rounded.weight, 0, weight.size(0)));
  return rounded;
}

}  // namespace

void run_language(const LanguageRun& command, const RunOptions& run, Report& report) {
  const CompressOptions& options = command.options;
  const GroupOptions& groups = command.groups;
  if (!options.output.empty()) check_output(options.output, OutputKind::kFolder, run.force, run.inputs);
  BackgroundHash hash(options.model);
  const CheckpointFiles checkpoint =
      timed(report, "load", [&] { return read_checkpoint(options.model, ModelFormat::kHuggingFace); });
  report.warnings = checkpoint.notes;
  const CalibrationTypes types = calibration_types(command.calibration);
  Decoder model = timed(report, "load model", [&] { return Decoder(options.model, types.compute); });
  const DecoderConfig& config = model.config();
  if (!config.quantization.empty())
    throw bad_data("'{}' is quantized already ({}); pass the model as it was before", options.model,
                   config.quantization);
  const PackedPlan plan = plan_language(config, checkpoint, options, groups);
  timed(report, "check weights", [&] { check_values(checkpoint, plan, groups); });
  report.calibration.emplace();
  const at::Tensor ids = read_calibration_text(options, command.calibration, config, run, report);
  const auto text = open_text(options, ModelFormat::kHuggingFace, run, report);
  evaluate_input(options, report);
  PackedFolder folder = folder_of(plan, &config, groups);
  command.describe(folder);
  announce_folder(checkpoint, options.model, name_of(ModelFormat::kHuggingFace), folder, hash, report);
  if (options.dry_run) {
    add_records(command, plan, config, std::nullopt, report);
    return finish_dry_run(run, report);
  }
  // The output and, while the run lasts, a byte a weight.
  uint64_t state_bytes = 0;
  for (const GroupedLayer& layer : plan.layers)
    state_bytes += static_cast<uint64_t>(layer.outputs * layer.inputs);
  check_output(options.output, OutputKind::kFolder, run.force, run.inputs,
               *report.predicted_bytes + state_bytes);
  const CheckpointOptions state = open_checkpoint(options.output, OutputKind::kFolder, command.resume,
                                                  {hash.get(), hash_of_text(command.calibration.calib_data),
                                                   text_of(plan.grids), report.calibration->compute},
                                                  run, report);
  warn_of_fresh_start(state, report);
  if (!command.resume) remove_rounded_blocks(state.path);
  RoundedModel made{state.path, {}};
  report.calibration->blocks_kept = timed(report, command.name, [&] {
    made.embedding = round_embedding(plan, model);
    std::map<std::string, GroupGrid> grids = plan.grids;
    if (made.embedding) grids.erase(made.embedding->name);
    return command.round(model, ids, grids, types.states, state);
  });
  write_output(command, run, checkpoint, plan, config, folder, made, report);
  add_records(command, plan, config, made, report);
  remove_rounded_blocks(state.path);
  describe_folder(options.output, folder, report);
  if (text) text->compare(options.output, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
