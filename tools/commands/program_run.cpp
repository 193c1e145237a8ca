#include "program_run.h"

#include <ATen/ATen.h>

#include "language_run.h"
#include "mcompress/base/output.h"
#include "mcompress/methods/program_nearest.h"
#include "mcompress/model/open_program.h"
#include "mcompress/model/program.h"
#include "models.h"

namespace mcompress::cli {

namespace {

// Options of checkpoints of text.
void check_options(const ProgramRun& command) {
  const CalibrationOptions plain;
  const std::string& format = command.groups.format;
  const std::map<std::string, bool> used = {
      {"--seqlen", command.calibration.seqlen != plain.seqlen},
      {"--calib-layout", command.calibration.calib_layout != plain.calib_layout},
      {"--calib-compute", command.calibration.calib_compute != plain.calib_compute},
      {"--format " + format, !format.empty() && format != kTorchScriptFormat},
      {"--max-shard-size", command.groups.shard_bytes != GroupOptions().shard_bytes},
      {"--lm-head", command.groups.head},
      {"--embeddings", command.groups.embedding_bits > 0},
      {"--resume", command.resume}};
  for (const auto& [name, given] : used) {
    if (given)
      throw error(Exit::kUsage,
                  "{} is for language models, folders with a config.json, and '{}' is TorchScript", name,
                  command.options.model);
  }
}

std::string obstacle_of(const Layer& layer) {
  if (layer.kind == LayerKind::kEmbedding) return "an embedding, which is left alone in programs";
  if (layer.kind == LayerKind::kConv1d) return "a convolution over one dimension";
  const std::string obstacle = obstacle_to_open(layer);
  if (!obstacle.empty()) return obstacle;
  if (layer.convolution && layer.convolution->groups != 1) return "a convolution in groups";
  return layer.weight.numel() == 0 ? "its weight is empty" : "";
}

std::vector<GroupedLayer> grouped_layers(const std::vector<Layer>& layers) {
  std::vector<GroupedLayer> result;
  for (const Layer& layer : layers) {
    const int64_t rows = std::max<int64_t>(1, layer.weight.size(0));
    result.push_back({layer.name, rows, layer.weight.numel() / rows});
  }
  return result;
}

std::vector<Decision> plan_program(const std::vector<Layer>& layers, const CompressOptions& options) {
  std::vector<Decision> plan;
  for (const Layer& layer : layers)
    plan.push_back(
        {layer.name, layer.kind, obstacle_of(layer), identity_of(layer.weight), layer.weight.nbytes()});
  decide_all(plan, options, [](LayerKind) { return std::string(); });
  return plan;
}

// Grids as they are, without the search that a plan needs not.
std::map<std::string, GroupGrid> without_search(std::map<std::string, GroupGrid> grids) {
  for (auto& [name, grid] : grids) grid.search = false;
  return grids;
}

// Errors are those of what is made, and losses those on calibration data, where there is some.
void add_records(const std::vector<Decision>& plan, const std::map<std::string, GroupGrid>& grids,
                 const std::map<std::string, RoundedLayer>& rounded, bool dry_run, Report& report) {
  for (const Decision& decision : plan) {
    const auto found = rounded.find(decision.name);
    if (found == rounded.end()) {
      report.layers.push_back(record_of(decision, "keep", decision.bytes_before));
      continue;
    }
    const RoundedLayer& layer = found->second;
    const GroupGrid& grid = grids.at(decision.name);
    const uint64_t bytes = stored_bytes(layer.weight);
    LayerRecord record = record_of(decision, fmt::format("int{}", layer.weight.bits), bytes);
    record.parameters = layer.weight.codes.numel();
    if (!dry_run) {
      record.sqnr_db = layer.sqnr_db;
      record.max_error = layer.max_error;
    }
    if (report.calibration->samples > 0) record.rounding = rounding_of(layer, grid.group_size);
    report.calibration->weights += *record.parameters;
    report.calibration->bytes += bytes;
    report.layers.push_back(std::move(record));
  }
}

}  // namespace

void run_program(const ProgramRun& command, const RunOptions& run, Report& report) {
  check_options(command);
  const CompressOptions& options = command.options;
  const CalibrationOptions& calibration_options = command.calibration;
  if (!options.output.empty()) check_output(options.output, OutputKind::kFile, run.force, run.inputs);
  const std::optional<Dataset> data = read_eval_data(options, report);
  const std::optional<Dataset> calibration =
      read_calibration(calibration_options.calib_data, calibration_options.nsamples, options, report);
  BackgroundHash hash(options.model);
  const auto program = timed(report, "load", [&] { return load_dense(options.model, run.trust_code); });
  const std::vector<Layer> layers = list_layers(program);
  std::vector<Decision> plan = plan_program(layers, options);
  const auto grids = choose_grids(command.groups, grouped_layers(layers), plan);
  if (grids.empty()) throw bad_data("'{}' has no layer left to round", options.model);
  evaluate_input(options, report);
  const WeightCount count = count_program(program);
  report.input = describe_artifact(options.model, name_of(ModelFormat::kTorchScript), count, hash);
  report.calibration.emplace();
  report.calibration->path = calibration_options.calib_data;
  if (calibration) report.calibration->compute = "float32";
  if (calibration && !options.dry_run) report.calibration->samples = calibration->size();
  if (calibration && calibration->size() < calibration_options.nsamples)
    report.warnings.push_back(fmt::format("'{}' has {} samples, and --nsamples asks for {}",
                                          calibration_options.calib_data, calibration->size(),
                                          calibration_options.nsamples));
  std::map<std::string, RoundedLayer> rounded;
  std::map<std::string, CompressedWeight> weights;
  std::vector<Layer> changed = layers;  // with new biases
  std::map<std::string, at::Tensor> others;
  // A plan's sizes are those of weights rounded to nearest.
  timed(report, options.dry_run ? "plan" : command.name, [&] {
    const at::Tensor batch =
        calibration && !options.dry_run ? calibration->batch(0, calibration->size()) : at::Tensor();
    RoundedProgram result = options.dry_run ? nearest_program(layers, without_search(grids))
                                            : command.round(program, layers, grids, batch);
    for (RoundedLayer& layer : result.layers) {
      weights.emplace(layer.name, layer.weight);
      rounded[layer.name] = std::move(layer);
    }
    for (Layer& layer : changed) {
      if (auto bias = result.changed.extract(layer.name + ".bias")) layer.bias = bias.mapped();
    }
    others = std::move(result.changed);
    report.folds = std::move(result.folds);
  });
  for (Decision& decision : plan) {
    if (decision.reason.empty() && !rounded.contains(decision.name))
      decision.reason = "the calibration data does not reach it";
  }
  if (rounded.empty()) throw bad_data("the calibration data reaches no layer of '{}'", options.model);
  add_records(plan, grids, rounded, options.dry_run, report);
  const auto replaced =
      replace_tensors(replace_layers(program, changed, weights, Runtime::kPortable), others);
  const std::string serialized = timed(report, "serialize", [&] { return serialize_program(replaced); });
  report.predicted_bytes = count_program_bytes(serialized);
  if (options.dry_run) return finish_dry_run(run, report);
  check_output(options.output, OutputKind::kFile, run.force, run.inputs, *report.predicted_bytes);
  const auto reopened = write_reopened(options, run, serialized, report);
  report.output =
      describe_artifact(options.output, name_of(ModelFormat::kTorchScript), {count.parameters, {}});
  if (data) evaluate_programs(program, reopened, *data, options, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
