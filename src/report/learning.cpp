#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "mcompress/report/report.h"
#include "page.h"

namespace mcompress {

namespace {

using Value = std::optional<double> (*)(const EpochRecord&);

std::optional<double> loss_of(const EpochRecord& epoch) {
  return std::isfinite(epoch.loss) ? std::optional(epoch.loss) : std::nullopt;
}
std::optional<double> score_of(const EpochRecord& epoch) { return epoch.score; }

Curve curve_of(const std::string& name, const std::string& style, const std::vector<EpochRecord>& epochs,
               Value value_of) {
  Curve curve{name, style, {}};
  for (const EpochRecord& epoch : epochs) {
    const auto value = value_of(epoch);
    if (!value) continue;
    curve.points.push_back({static_cast<double>(epoch.epoch), *value,
                            fmt::format("{}, epoch {}: {:.4f}", name, epoch.epoch, *value)});
  }
  return curve;
}

// A chart of one value over the epochs; empty where no epoch has it.
std::string chart_of(const Report& report, const std::string& label, bool percent, Value value_of) {
  std::vector<Curve> curves;
  if (report.distillation && !report.distillation->baseline_epochs.empty())
    curves.push_back(curve_of("without teacher", "other", report.distillation->baseline_epochs, value_of));
  curves.push_back(
      curve_of(report.teacher ? "with teacher" : "training", "main", report.training->epochs, value_of));
  double low = INFINITY, high = -INFINITY, last = 1;
  for (const Curve& curve : curves) {
    for (const Point& point : curve.points) {
      low = std::min(low, point.y);
      high = std::max(high, point.y);
      last = std::max(last, point.x);
    }
  }
  if (low > high) return "";
  return chart({"epoch", 0, last}, {label, low, high, percent}, curves);
}

}  // namespace

std::string learning_page(const Report& report, const std::string& model) {
  std::string body =
      chart_of(report, "top-1 on the rows that are scored", true, score_of) +
      chart_of(report, "loss, nats", false, loss_of) +
      "<table><tr><th>epoch</th><th>loss</th><th>rate</th><th>score</th><th>seconds</th></tr>\n";
  for (const EpochRecord& epoch : report.training->epochs) {
    body += fmt::format("<tr><td>{}{}</td><td>{}</td><td>{:.3g}</td><td>{}</td><td>{:.1f}</td></tr>\n",
                        epoch.epoch, epoch.epoch == report.training->best_epoch ? " (kept)" : "",
                        loss_of(epoch) ? fmt::format("{:.4f}", epoch.loss) : "-", epoch.rate,
                        epoch.score ? fmt::format("{:.2f} %", 100 * *epoch.score) : "-", epoch.seconds);
  }
  return page(fmt::format("Training of {}", model), body + "</table>");
}

}  // namespace mcompress
