#include <map>
#include <optional>
#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/progress.h"
#include "mcompress/methods/grid.h"
#include "mcompress/methods/group_grid.h"
#include "mcompress/methods/program_nearest.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/packed_folder.h"
#include "packed_plan.h"
#include "packed_run.h"
#include "program_run.h"
#include "quantize.h"

namespace mcompress::cli {

namespace {

// The weights of the layers as they are rounded to nearest, each when it is asked for.
class NearestLayers {
 public:
  NearestLayers(const CheckpointFiles& checkpoint, const PackedPlan& plan, const DecoderConfig* config)
      : checkpoint_(checkpoint), plan_(plan) {
    for (size_t i = 0; i < checkpoint.arrays.size(); ++i) index_[checkpoint.arrays[i].name] = i;
    if (config == nullptr || !config->transposed) return;
    for (const GroupedLayer& layer : plan.layers) {
      if (!layer.embedding && layer.name != config->names.head) transposed_.insert(layer.name);
    }
  }

  at::Tensor weight(const std::string& layer) const {
    const Array& array = checkpoint_.arrays[index_.at(layer + ".weight")];
    const at::Tensor values = rows_of(array, 0, array.shape[0]).to(at::kFloat);
    return transposed(layer) ? values.t().contiguous() : values;
  }

  const GroupGrid& grid_of(const std::string& layer) const { return plan_.grids.at(layer); }

  void give_back(const std::string& layer) const {
    const size_t array = index_.at(layer + ".weight");
    checkpoint_.files[checkpoint_.file_of[array]]->drop(checkpoint_.arrays[array].bytes);
  }

  // The values that the codes stand for, in the type in which the array was stored.
  std::map<size_t, EditRows> edits() const {
    std::map<size_t, EditRows> edits;
    for (const auto& [layer, grid] : plan_.grids) {
      EditRows& edit = edits[index_.at(layer + ".weight")];
      if (transposed(layer)) {
        edit = [this, layer = layer](const at::Tensor& rows, int64_t begin, int64_t end) {
          const IntGroup whole = round_to_groups(weight(layer), grid_of(layer));
          return dequantize_rows(whole, 0, whole.codes.size(0))
              .slice(1, begin, end)
              .t()
              .to(rows.scalar_type());
        };
      } else {
        edit = [grid = grid](const at::Tensor& rows, int64_t, int64_t) {
          const IntGroup part = round_to_groups(rows.to(at::kFloat), grid);
          return dequantize_rows(part, 0, rows.size(0)).to(rows.scalar_type());
        };
      }
    }
    return edits;
  }

 private:
  bool transposed(const std::string& layer) const { return transposed_.contains(layer); }

  const CheckpointFiles& checkpoint_;
  const PackedPlan& plan_;
  std::map<std::string, size_t> index_;
  std::set<std::string> transposed_;
};

using Errors = std::map<std::string, QuantizationError>;

// Writes the layers, and reads them again before they take their place.
Errors write_folder(const QuantizeCommand& options, const RunOptions& run, const CheckpointFiles& checkpoint,
                    const DecoderConfig* config, const PackedFolder& folder, const NearestLayers& layers,
                    Report& report) {
  OutputFolder output(options.output, run.force);
  Errors errors;
  if (!folder.form) {
    std::map<size_t, EditRows> edits = layers.edits();
    if (config != nullptr) edit_tied_head(checkpoint, *config, edits);
    timed(report, "write", [&] { write_edited_folder(checkpoint, options.model, edits, output); });
    output.commit();
    return errors;
  }
  Progress progress("quantize", static_cast<int64_t>(folder.layers.size()));
  const auto give = [&](const TakeLayer& take) {
    for (const PackedLayer& layer : folder.layers) {
      const at::Tensor weight = layers.weight(layer.name);
      const IntGroup rounded = round_to_groups(weight, layers.grid_of(layer.name));
      errors[layer.name] = error_of(weight, rounded);
      take(layer.name, rounded);
      layers.give_back(layer.name);
      progress.step();
    }
  };
  write_checked_folder(checkpoint, options.model, folder, give, output, report);
  output.commit();
  return errors;
}

}  // namespace

void quantize_program_weights(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  if (!options.calib_data.empty())
    throw error(Exit::kUsage,
                "--calib-data with --mode weight-only is for language models, and '{}' is TorchScript; leave "
                "it out, or use 'mcompress gptq' or 'mcompress awq'",
                options.model);
  const CalibrationOptions none;
  ProgramRun command{"quantize", options, options.groups, none, options.training.resume, {}};
  command.round = [](const torch::jit::Module&, const std::vector<Layer>& layers,
                     const std::map<std::string, GroupGrid>& grids,
                     const at::Tensor&) { return nearest_program(layers, grids); };
  run_program(command, run, report);
}

void quantize_weights(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  const GroupOptions& groups = options.groups;
  BackgroundHash hash(options.model);
  const CheckpointFiles checkpoint =
      timed(report, "load", [&] { return read_checkpoint(options.model, ModelFormat::kHuggingFace); });
  report.warnings = checkpoint.notes;
  check_not_stored(checkpoint.metadata, options);
  const std::string quantization = read_quantization(options.model).text;
  if (!quantization.empty())
    throw bad_data("'{}' is quantized already ({}); pass the model as it was before", options.model,
                   quantization);
  std::string why;
  const std::optional<DecoderConfig> language = language_config(options.model, &why);
  if (!language)
    report.warnings.push_back(fmt::format(
        "every matrix counts as a linear layer, since it is no language model that can be run: {}", why));
  const DecoderConfig* config = language ? &*language : nullptr;
  if (config == nullptr && groups.embedding_bits > 0 && form_of(groups))
    report.warnings.emplace_back(kTiedWarning);
  const PackedPlan plan = config != nullptr ? plan_language(*config, checkpoint, options, groups)
                                            : plan_matrices(checkpoint, options, groups);
  timed(report, "check weights", [&] { check_values(checkpoint, plan, groups); });
  const auto text = open_text(options, ModelFormat::kHuggingFace, run, report);
  evaluate_input(options, report);
  const PackedFolder folder = folder_of(plan, config, groups);
  announce_folder(checkpoint, options.model, name_of(ModelFormat::kHuggingFace), folder, hash, report);
  report.calibration.emplace();
  for (const Decision& decision : plan.decisions)
    report.layers.push_back(record_of(decision, plan, groups, *report.calibration));
  if (options.dry_run) return finish_dry_run(run, report);
  check_output(options.output, OutputKind::kFolder, run.force, run.inputs, *report.predicted_bytes);
  const NearestLayers layers(checkpoint, plan, config);
  const Errors errors = write_folder(options, run, checkpoint, config, folder, layers, report);
  for (LayerRecord& record : report.layers) {
    const auto lost = errors.find(record.name);
    if (lost == errors.end()) continue;
    record.sqnr_db = lost->second.sqnr_db;
    record.max_error = lost->second.max_error;
  }
  describe_folder(options.output, folder, report);
  if (text) text->compare(options.output, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
