#include "mcompress/base/error.h"
#include "mcompress/report/report.h"

namespace mcompress {

namespace {

// What a gate compares; refuses where it was not measured.
double judged(const std::optional<double>& value, const char* option, const char* what) {
  if (!value)
    throw error(Exit::kUsage, "{} needs {}, which was not measured; pass --eval-data", option, what);
  return *value;
}

double accuracy_drop(const GateOptions& options, const Report& report) {
  const auto quality = [](const std::optional<Metrics>& metrics) {
    return judged(metrics ? metrics->quality() : std::nullopt, "--max-accuracy-drop",
                  "top1 or accuracy before and after");
  };
  const double before = quality(report.before);
  const double drop = before - quality(report.after);
  return options.drop == "relative" && before > 0 ? drop / before : drop;
}

std::optional<double> latency_ratio(const Report& report) {
  if (!report.before || !report.after || !report.before->latency || !report.after->latency)
    return std::nullopt;
  return report.after->latency->p50 / report.before->latency->p50;
}

std::optional<double> perplexity_ratio(const Report& report) {
  if (!report.before || !report.after || !report.before->text || !report.after->text) return std::nullopt;
  return report.after->text->perplexity() / report.before->text->perplexity();
}

std::optional<double> agreement_of(const Report& report) {
  if (report.reference) return report.reference->divergence.same_top1.value();
  if (!report.before || !report.after || !report.before->accuracy || !report.after->accuracy)
    return std::nullopt;
  return agreement(*report.before->accuracy, *report.after->accuracy).value();
}

}  // namespace

bool check_gates(const GateOptions& options, Report& report) {
  // Differences of two shares carry a rounding error that must not fail a gate at its limit.
  constexpr double kSlack = 1e-12;
  bool all = true;
  const auto add = [&](const char* name, double limit, double value, bool passed) {
    report.gates.push_back({name, limit, value, passed});
    all = all && passed;
  };
  if (options.max_accuracy_drop) {
    const double drop = accuracy_drop(options, report);
    add("max-accuracy-drop", *options.max_accuracy_drop, drop, drop <= *options.max_accuracy_drop + kSlack);
  }
  if (options.max_perplexity_ratio) {
    const double ratio =
        judged(perplexity_ratio(report), "--max-perplexity-ratio", "the perplexity of a language model");
    add("max-perplexity-ratio", *options.max_perplexity_ratio, ratio, ratio <= *options.max_perplexity_ratio);
  }
  if (options.min_size_ratio) {
    add("min-size-ratio", *options.min_size_ratio, report.size_ratio(),
        report.size_ratio() >= *options.min_size_ratio);
  }
  if (options.max_latency_ratio) {
    const double ratio = judged(latency_ratio(report), "--max-latency-ratio", "latency");
    add("max-latency-ratio", *options.max_latency_ratio, ratio, ratio <= *options.max_latency_ratio);
  }
  if (options.min_agreement) {
    const double share = judged(agreement_of(report), "--min-agreement", "agreement");
    add("min-agreement", *options.min_agreement, share, share >= *options.min_agreement - kSlack);
  }
  return all;
}

}  // namespace mcompress
