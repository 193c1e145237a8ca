#include <fmt/format.h>

#include "mcompress/base/text.h"
#include "mcompress/report/report.h"
#include "mcompress/report/sweep.h"

namespace mcompress {

namespace {

std::string text_cells(const TextLoss& text) {
  std::string cells = fmt::format("  perplexity {:.4f}", text.perplexity());
  if (const auto error = text.perplexity_error()) cells += fmt::format(" +- {:.4f}", *error);
  return cells + fmt::format("  {} tokens  {:.0f} tokens/s", text.tokens, text.tokens_per_second());
}

std::string divergence_line(const Divergence& kl) {
  return fmt::format(
      "KL divergence {:.5f}, 95 % below {:.5f}, 99 % below {:.5f}, largest {:.4f}; same first token for "
      "{:.2f} %; "
      "right token {:+.3f} points\n",
      kl.mean, kl.p95, kl.p99, kl.largest, 100 * kl.same_top1.value(), 100 * kl.right_token_change);
}

std::string metrics_cells(const std::optional<Metrics>& metrics) {
  std::string cells;
  if (!metrics) return cells;
  if (metrics->accuracy) {
    const Interval interval = wilson_interval(metrics->accuracy->top1);
    cells += fmt::format("  top-1 {:.2f} % [{:.2f}, {:.2f}]  top-5 {:.2f} %  loss {:.4f}",
                         100 * metrics->accuracy->top1.value(), 100 * interval.low, 100 * interval.high,
                         100 * metrics->accuracy->top5.value(), metrics->accuracy->loss);
  }
  if (metrics->text) cells += text_cells(*metrics->text);
  if (metrics->latency) {
    cells +=
        fmt::format("  {:.3f} ms a batch of {}", 1000 * metrics->latency->p50, metrics->latency->batch_size);
  }
  for (const auto& [name, value] : metrics->custom)
    cells += fmt::format("  {} {:.6g}", printable(name), value);
  return cells;
}

std::string mean_text(const SeedMean& mean) {
  std::string text = fmt::format("{:.2f}", 100 * mean.mean);
  if (mean.deviation) text += fmt::format(" +- {:.2f}", 100 * *mean.deviation);
  return text;
}

std::string distillation_lines(const Distillation& distillation) {
  const auto gain = distillation.gain();
  if (!gain) return "";
  std::string text =
      fmt::format("top-1 with teacher {} %, without {} %, gain {:+.2f} points",
                  mean_text(*distillation.top1()), mean_text(*distillation.baseline()), 100 * gain->mean);
  if (gain->low) {
    text += fmt::format(" [{:+.2f}, {:+.2f}] over {} seeds", 100 * *gain->low, 100 * *gain->high,
                        distillation.runs.size());
  }
  return text + "\n";
}

}  // namespace

std::string to_table(const Report& report) {
  std::string table = sweep_table(report.sweep);
  if (!report.before && !report.output) return table;
  if (report.input)
    table += fmt::format("{:<7}{:>12} bytes{}\n", report.distillation ? "teacher" : "before",
                         report.input->bytes, metrics_cells(report.before));
  if (!report.output) {
    if (const auto& reference = report.reference)
      table += fmt::format("reference {}{}\n{}", printable(reference->path), text_cells(reference->text),
                           divergence_line(reference->divergence));
    return table;
  }
  if (report.training && report.training->fake_quantized)
    table += fmt::format("trained, before conversion{}\n", metrics_cells(report.training->fake_quantized));
  if (report.pruning && report.pruning->at_once)
    table += fmt::format("pruned at once, not trained{}\n", metrics_cells(report.pruning->at_once));
  table += fmt::format("{:<7}{:>12} bytes{}\n", report.distillation ? "student" : "after",
                       report.output->bytes, metrics_cells(report.after));
  table += fmt::format("{:.2f} times smaller", report.size_ratio());
  if (report.pruning && report.pruning->weights > 0) {
    table += fmt::format(", {:.2f} % of {} weights are zero", 100 * report.pruning->sparsity(),
                         report.pruning->weights);
  }
  if (report.before && report.after && report.before->accuracy && report.after->accuracy) {
    table += fmt::format(", same class for {:.2f} % of the samples",
                         100 * agreement(*report.before->accuracy, *report.after->accuracy).value());
  }
  if (report.before && report.after && report.before->latency && report.after->latency) {
    table +=
        fmt::format(", {:.2f} times the latency", report.after->latency->p50 / report.before->latency->p50);
  }
  table += "\n";
  if (report.reference) table += divergence_line(report.reference->divergence);
  if (report.distillation) table += distillation_lines(*report.distillation);
  if (report.storage) {
    const Storage& storage = *report.storage;
    table += fmt::format("stored as {}: {} bytes, with zstd {}; dense: {} bytes, with zstd {}\n",
                         storage.store, storage.stored_bytes, storage.stored_zstd_bytes, storage.dense_bytes,
                         storage.dense_zstd_bytes);
  }
  return table;
}

}  // namespace mcompress
