#include <fmt/format.h>

#include "log.h"
#include "quantize.h"

namespace mcompress::cli {

namespace {

std::string obstacle_of(LayerKind kind, const QuantizeCommand& options) {
  if (kind == LayerKind::kConv1d || kind == LayerKind::kConv2d) return "dynamic mode treats no convolutions";
  const bool left = kind == LayerKind::kEmbedding && !options.embeddings;
  return left ? "embeddings are left alone without --embeddings" : "";
}

}  // namespace

void decide_all(std::vector<Decision>& plan, const QuantizeCommand& options) {
  decide(
      plan, options.selection, [&](LayerKind kind) { return obstacle_of(kind, options); }, options.model);
}

void evaluate_input(const QuantizeCommand& options, Report& report) {
  if (options.eval.command.empty() || options.dry_run) return;
  report.before.emplace();
  report.before->custom = timed(report, "evaluate command before",
                                [&] { return run_eval_command(options.eval.command, options.model); });
  if (options.gates.max_accuracy_drop && options.eval.data_path.empty() && !report.before->quality()) {
    throw error(Exit::kUsage, "--max-accuracy-drop needs 'top1' or 'accuracy' from --eval-command");
  }
}

LayerRecord record_of(const Decision& decision, const QuantizeCommand& options, uint64_t compressed_bytes) {
  const bool compressed = decision.reason.empty();
  return {decision.name,
          name_of(decision.kind),
          compressed ? options.dtype : "keep",
          decision.reason,
          decision.bytes_before,
          compressed ? compressed_bytes : decision.bytes_before,
          {},
          {}};
}

LayerRecord other_weight(const std::string& name, uint64_t bytes) {
  return {name, "other", "keep", "not the weight of a linear layer or embedding", bytes, bytes, {}, {}};
}

namespace {

void log_layers(const Report& report) {
  for (const LayerRecord& layer : report.layers) {
    log_detail(
        fmt::format("{}: {}{}", layer.name, layer.decision, layer.reason.empty() ? "" : ", " + layer.reason));
  }
}

void print_plan(const Report& report) {
  for (const LayerRecord& layer : report.layers) {
    fmt::print("{:<48} {:<10} {:>12} -> {:>12} bytes  {}\n", printable(layer.name), layer.decision,
               layer.bytes_before, layer.bytes_after, printable(layer.reason));
  }
  fmt::print("predicted output: {} bytes\n", *report.predicted_bytes);
}

}  // namespace

void finish_dry_run(const RunOptions& run, const Report& report) {
  if (run.report != "-") print_plan(report);
}

void conclude(const QuantizeCommand& options, Report& report) {
  if (!options.eval.command.empty()) {
    if (!report.after) report.after.emplace();
    try {
      report.after->custom = timed(report, "evaluate command after",
                                   [&] { return run_eval_command(options.eval.command, options.output); });
    } catch (const Error& failure) {
      throw error(failure.code(), "'{}' is written, but could not be measured: {}", options.output,
                  failure.what());
    }
  }
  if (report.size_ratio() < 1) report.warnings.emplace_back("the output is larger than the input");
  if (!check_gates(options.gates, report)) report.exit_code = static_cast<int>(Exit::kGateFailed);
  log_layers(report);
}

}  // namespace mcompress::cli
