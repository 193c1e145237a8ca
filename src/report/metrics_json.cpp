#include "metrics_json.h"

namespace mcompress {

using nlohmann::ordered_json;

ordered_json share_json(const Share& share) {
  const Interval interval = wilson_interval(share);
  return {{"value", share.value()},
          {"low", interval.low},
          {"high", interval.high},
          {"count", share.count},
          {"total", share.total}};
}

namespace {

ordered_json latency_json(const Latency& latency) {
  return {{"batch_size", latency.batch_size}, {"runs", latency.runs},
          {"p50_seconds", latency.p50},       {"p90_seconds", latency.p90},
          {"p99_seconds", latency.p99},       {"samples_per_second", latency.samples_per_second()}};
}

ordered_json text_json(const TextLoss& text) {
  return {{"value", text.perplexity()},
          {"standard_error", or_null(text.perplexity_error())},
          {"nats", text.nats},
          {"tokens", text.tokens},
          {"windows", text.windows},
          {"window_tokens", text.length},
          {"tokens_per_second", text.tokens_per_second()}};
}

ordered_json reference_json(const std::optional<Reference>& reference) {
  if (!reference) return nullptr;
  const Divergence& kl = reference->divergence;
  return {{"path", reference->path},
          {"perplexity", text_json(reference->text)},
          {"kl_divergence", {{"mean", kl.mean}, {"p95", kl.p95}, {"p99", kl.p99}, {"max", kl.largest}}},
          {"same_top1", share_json(kl.same_top1)},
          {"right_token_change", kl.right_token_change}};
}

}  // namespace

ordered_json metrics_json(const std::optional<Metrics>& metrics) {
  if (!metrics) return nullptr;
  ordered_json json = ordered_json::object();
  if (metrics->accuracy) {
    const Accuracy& accuracy = *metrics->accuracy;
    json["top1"] = share_json(accuracy.top1);
    json["top5"] = share_json(accuracy.top5);
    json["loss"] = {{"value", accuracy.loss},
                    {"low", accuracy.loss - accuracy.loss_margin},
                    {"high", accuracy.loss + accuracy.loss_margin}};
  }
  if (metrics->text) json["perplexity"] = text_json(*metrics->text);
  if (metrics->latency) json["latency"] = latency_json(*metrics->latency);
  if (!metrics->custom.empty()) json["custom"] = metrics->custom;
  return json;
}

ordered_json comparison_json(const Report& report) {
  ordered_json json = {{"agreement", nullptr},
                       {"output_sqnr_db", nullptr},
                       {"latency_ratio", nullptr},
                       {"reference", reference_json(report.reference)}};
  if (!report.before || !report.after) return json;
  if (report.before->accuracy && report.after->accuracy) {
    json["agreement"] = share_json(agreement(*report.before->accuracy, *report.after->accuracy));
    json["output_sqnr_db"] = output_sqnr_db(*report.before->accuracy, *report.after->accuracy);
  }
  if (report.before->latency && report.after->latency) {
    json["latency_ratio"] = report.after->latency->p50 / report.before->latency->p50;
  }
  return json;
}

}  // namespace mcompress
