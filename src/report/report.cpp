#include "mcompress/report/report.h"

#include <ATen/Version.h>
#include <ATen/native/DispatchStub.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/version.h>

#include "mcompress/base/process.h"
#include "mcompress/base/text.h"
#include "mcompress/formats/zstd.h"
#include "mcompress/report/version.h"
#include "metrics_json.h"

namespace mcompress {

namespace {

using nlohmann::ordered_json;

ordered_json artifact_json(const std::optional<Artifact>& artifact) {
  if (!artifact) return nullptr;
  return {{"path", artifact->path},
          {"format", artifact->format},
          {"sha256", text_or_null(artifact->sha256)},
          {"bytes", artifact->bytes},
          {"parameters", artifact->parameters},
          {"nonzeros", or_null(artifact->nonzeros)},
          {"bits_per_weight", artifact->bits_per_weight()}};
}

ordered_json settings_json(const std::vector<Setting>& settings, bool sources) {
  ordered_json json = ordered_json::object();
  for (const Setting& setting : settings) {
    if (sources) {
      json[setting.name] = setting.source;
    } else {
      std::visit(
          [&](const auto& value) {
            if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::monostate>) {
              json[setting.name] = nullptr;
            } else {
              json[setting.name] = value;
            }
          },
          setting.value);
    }
  }
  return json;
}

ordered_json size_json(const Report& report) {
  if (!report.input || !(report.output || report.predicted_bytes)) return nullptr;
  constexpr uint64_t kFloatBytes = 4, kNarrowBytes = 2;
  const auto parameters = static_cast<uint64_t>(report.input->parameters);
  const auto ratio = [&](uint64_t bytes) -> ordered_json {
    if (!report.output) return nullptr;  // a dry run predicts
    return static_cast<double>(bytes) / static_cast<double>(report.output->bytes);
  };
  return {{"ratio", report.output ? ordered_json(report.size_ratio()) : ordered_json()},
          {"fp32_bytes", kFloatBytes * parameters},
          {"ratio_to_fp32", ratio(kFloatBytes * parameters)},
          {"bf16_bytes", kNarrowBytes * parameters},
          {"ratio_to_bf16", ratio(kNarrowBytes * parameters)},
          {"predicted_bytes", or_null(report.predicted_bytes)}};
}

ordered_json grid_json(const std::optional<InputGrid>& grid) {
  if (!grid) return nullptr;
  return {{"scale", grid->scale}, {"zero_point", grid->zero_point}, {"bits", grid->bits}};
}

ordered_json timing_json(const std::optional<LayerTiming>& timing) {
  if (!timing) return nullptr;
  return {{"float_seconds", timing->float_seconds}, {"integer_seconds", timing->integer_seconds}};
}

ordered_json damage_json(const std::optional<LayerDamage>& damage) {
  if (!damage) return nullptr;
  return {{"sqnr_db", damage->sqnr_db}, {"top1", or_null(damage->top1)}};
}

ordered_json rounding_json(const std::optional<GroupRounding>& rounding) {
  if (!rounding) return nullptr;
  return {{"bits", rounding->bits},       {"group_size", rounding->group_size},
          {"loss", rounding->loss},       {"rounded_loss", rounding->rounded_loss},
          {"damping", rounding->damping}, {"dead_channels", rounding->dead_channels},
          {"rounded", rounding->rounded}, {"seconds", rounding->seconds}};
}

ordered_json calibration_json(const std::optional<Calibration>& calibration) {
  if (!calibration) return nullptr;
  return {{"path", calibration->path},
          {"samples", calibration->samples},
          {"length", calibration->length},
          {"compute", calibration->compute},
          {"weights", calibration->weights},
          {"bytes", calibration->bytes},
          {"bits_per_weight", calibration->bits_per_weight()},
          {"blocks_kept", calibration->blocks_kept}};
}

ordered_json folds_json(const std::vector<Fold>& folds) {
  ordered_json json = ordered_json::array();
  for (const Fold& fold : folds)
    json.push_back({{"from", fold.from},
                    {"layers", fold.layers},
                    {"plain_loss", fold.plain_loss},
                    {"loss", fold.loss},
                    {"power", fold.power},
                    {"by_weight", fold.by_weight},
                    {"made", fold.made}});
  return json;
}

ordered_json findings_json(const std::vector<Finding>& findings) {
  ordered_json json = ordered_json::array();
  for (const Finding& finding : findings) json.push_back({{"where", finding.where}, {"what", finding.what}});
  return json;
}

ordered_json layer_json(const LayerRecord& layer) {
  return {{"name", layer.name},
          {"kind", layer.kind},
          {"decision", layer.decision},
          {"reason", layer.reason.empty() ? ordered_json(nullptr) : ordered_json(layer.reason)},
          {"bytes_before", layer.bytes_before},
          {"bytes_after", layer.bytes_after},
          {"sqnr_db", or_null(layer.sqnr_db)},
          {"max_error", or_null(layer.max_error)},
          {"parameters", or_null(layer.parameters)},
          {"zeros", or_null(layer.zeros)},
          {"input", grid_json(layer.input)},
          {"timing", timing_json(layer.timing)},
          {"damage", damage_json(layer.damage)},
          {"rounding", rounding_json(layer.rounding)}};
}

double share_of(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

ordered_json pruning_json(const Report& report) {
  if (!report.pruning) return nullptr;
  const Pruning& pruning = *report.pruning;
  ordered_json json = {{"target", or_null(pruning.target)},
                       {"weights", pruning.weights},
                       {"zeros", pruning.zeros},
                       {"sparsity", pruning.sparsity()},
                       {"sparsity_of_model", nullptr},
                       {"at_once", metrics_json(pruning.at_once)}};
  if (report.output) {
    json["sparsity_of_model"] =
        share_of(report.output->parameters - report.output->nonzeros.value_or(0), report.output->parameters);
  }
  return json;
}

ordered_json storage_json(const std::optional<Storage>& storage) {
  if (!storage) return nullptr;
  return {{"store", storage->store},
          {"dense_bytes", storage->dense_bytes},
          {"stored_bytes", storage->stored_bytes},
          {"dense_zstd_bytes", storage->dense_zstd_bytes},
          {"stored_zstd_bytes", storage->stored_zstd_bytes},
          {"zstd_level", kZstdLevel}};
}

ordered_json sweep_json(const SweepRow& row) {
  return {{"layer", row.layer.empty() ? ordered_json(nullptr) : ordered_json(row.layer)},
          {"target", row.target},
          {"sparsity", row.sparsity},
          {"top1", row.top1 ? share_json(*row.top1) : ordered_json(nullptr)},
          {"agreement", row.agreement ? share_json(*row.agreement) : ordered_json(nullptr)},
          {"dense_bytes", row.dense_bytes},
          {"stored_bytes", row.stored_bytes}};
}

template <typename T, typename F>
ordered_json list_json(const std::vector<T>& items, F to_item) {
  ordered_json list = ordered_json::array();
  for (const T& item : items) list.push_back(to_item(item));
  return list;
}

ordered_json quantization_json(const std::optional<Quantization>& quantization) {
  if (!quantization) return nullptr;
  const auto trial_json = [](const Trial& trial) {
    return ordered_json{{"kept", trial.kept}, {"top1", trial.top1}, {"passed", trial.passed}};
  };
  return {{"folded_norms", quantization->folded_norms},
          {"folding_error", or_null(quantization->folding_error)},
          {"trials", list_json(quantization->trials, trial_json)}};
}

ordered_json epoch_json(const EpochRecord& epoch) {
  return {{"epoch", epoch.epoch},
          {"loss", epoch.loss},
          {"rate", epoch.rate},
          {"score", or_null(epoch.score)},
          {"seconds", epoch.seconds}};
}

ordered_json training_json(const std::optional<Training>& training) {
  if (!training) return nullptr;
  return {{"steps", training->steps},
          {"best_epoch", training->best_epoch},
          {"stopped", training->stopped.empty() ? ordered_json(nullptr) : ordered_json(training->stopped)},
          {"resumed_at_step", or_null(training->resumed_at)},
          {"fake_quantized", metrics_json(training->fake_quantized)},
          {"epochs", list_json(training->epochs, epoch_json)}};
}

ordered_json teacher_json(const std::optional<TeacherRecord>& teacher) {
  if (!teacher) return nullptr;
  return {{"path", teacher->path},
          {"sha256", teacher->sha256},
          {"live", teacher->live},
          {"cache", text_or_null(teacher->cache)},
          {"cache_bytes", teacher->cache_bytes},
          {"reused", teacher->reused}};
}

ordered_json mean_json(const std::optional<SeedMean>& mean) {
  if (!mean) return nullptr;
  return {{"mean", mean->mean},
          {"deviation", or_null(mean->deviation)},
          {"low", or_null(mean->low)},
          {"high", or_null(mean->high)}};
}

ordered_json distillation_json(const std::optional<Distillation>& distillation) {
  if (!distillation) return nullptr;
  const auto run_json = [](const DistillRun& run) {
    return ordered_json{{"seed", run.seed},
                        {"top1", run.top1 ? share_json(*run.top1) : ordered_json(nullptr)},
                        {"baseline", run.baseline ? share_json(*run.baseline) : ordered_json(nullptr)}};
  };
  return {{"student", artifact_json(distillation->student)},
          {"copied", distillation->copied},
          {"scored_on", text_or_null(distillation->scored_on)},
          {"runs", list_json(distillation->runs, run_json)},
          {"top1", mean_json(distillation->top1())},
          {"baseline", mean_json(distillation->baseline())},
          {"gain", mean_json(distillation->gain())},
          {"baseline_epochs", list_json(distillation->baseline_epochs, epoch_json)}};
}

}  // namespace

std::optional<double> Metrics::quality() const {
  if (accuracy) return accuracy->top1.value();
  for (const char* name : {"top1", "accuracy"}) {
    const auto found = custom.find(name);
    if (found != custom.end()) return found->second;
  }
  return std::nullopt;
}

double Report::size_ratio() const {
  return static_cast<double>(input->bytes) / static_cast<double>(output->bytes);
}

ordered_json tool_json() {
  return {{"name", "mcompress"},       {"version", kVersion},
          {"libtorch", TORCH_VERSION}, {"compiler", "gcc " __VERSION__},
          {"cpu", cpu_name()},         {"cpu_capability", at::get_cpu_capability()}};
}

ordered_json to_json(const Report& report) {
  double total = 0;
  for (const Phase& phase : report.phases) total += phase.seconds;
  return {{"schema_version", 1},
          {"tool", tool_json()},
          {"command", report.command},
          {"settings", settings_json(report.settings, false)},
          {"settings_from", settings_json(report.settings, true)},
          {"input", artifact_json(report.input)},
          {"output", artifact_json(report.output)},
          {"size", size_json(report)},
          {"metrics", {{"before", metrics_json(report.before)}, {"after", metrics_json(report.after)}}},
          {"comparison", comparison_json(report)},
          {"layers", list_json(report.layers, layer_json)},
          {"quantization", quantization_json(report.quantization)},
          {"calibration", calibration_json(report.calibration)},
          {"folds", folds_json(report.folds)},
          {"findings", findings_json(report.findings)},
          {"training", training_json(report.training)},
          {"teacher", teacher_json(report.teacher)},
          {"distillation", distillation_json(report.distillation)},
          {"pruning", pruning_json(report)},
          {"storage", storage_json(report.storage)},
          {"sweep", list_json(report.sweep, sweep_json)},
          {"gates",
           list_json(report.gates,
                     [](const Gate& g) {
                       return ordered_json{
                           {"name", g.name}, {"limit", g.limit}, {"value", g.value}, {"passed", g.passed}};
                     })},
          {"warnings", report.warnings},
          {"phases", list_json(report.phases,
                               [](const Phase& p) {
                                 return ordered_json{{"name", p.name}, {"seconds", p.seconds}};
                               })},
          {"elapsed_seconds", total},
          {"peak_rss_bytes", peak_rss_bytes()},
          {"seed", report.seed},
          {"threads", report.threads},
          {"exit_code", report.exit_code}};
}

}  // namespace mcompress
