#include "mcompress/report/sweep.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "mcompress/base/text.h"
#include "page.h"

namespace mcompress {

namespace {

std::string percent(const std::optional<Share>& share) {
  return share ? fmt::format("{:.2f} %", 100 * share->value()) : "-";
}

// What the curve shows of a row, from 0 to 1.
double height_of(const SweepRow& row) {
  if (row.top1) return row.top1->value();
  return std::min(1.0, static_cast<double>(row.stored_bytes) / static_cast<double>(row.dense_bytes));
}

Curve curve_of(const std::string& layer, const std::vector<SweepRow>& rows) {
  Curve curve{layer, layer.empty() ? "main" : "part", {}};
  for (const SweepRow& row : rows) {
    const double height = height_of(row);
    curve.points.push_back(
        {row.target, height,
         fmt::format("{} at {:.3g}: {:.2f} %", layer.empty() ? "all" : layer, row.target, 100 * height)});
  }
  return curve;
}

std::string table_row(const SweepRow& row) {
  return fmt::format("<tr><td>{}</td><td>{:.3g}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                     row.layer.empty() ? "all" : escaped(row.layer), row.target, percent(row.top1),
                     percent(row.agreement), row.stored_bytes, row.dense_bytes);
}

}  // namespace

std::string sweep_table(const std::vector<SweepRow>& rows) {
  if (rows.empty()) return "";
  std::string table = fmt::format("{:>8} {:>8} {:>10} {:>10} {:>14} {:>7}  {}\n", "target", "sparsity",
                                  "top-1", "same class", "as bitmask", "ratio", "layer");
  for (const SweepRow& row : rows) {
    table += fmt::format("{:>8.3f} {:>8.3f} {:>10} {:>10} {:>14} {:>6.2f}x  {}\n", row.target, row.sparsity,
                         percent(row.top1), percent(row.agreement), row.stored_bytes,
                         static_cast<double>(row.dense_bytes) / static_cast<double>(row.stored_bytes),
                         row.layer.empty() ? "all" : printable(row.layer));
  }
  return table;
}

std::string sweep_page(const std::vector<SweepRow>& rows, const std::string& model) {
  std::map<std::string, std::vector<SweepRow>> by_layer;
  for (const SweepRow& row : rows) by_layer[row.layer].push_back(row);
  std::vector<Curve> curves;  // layers first, so that the whole lies on top
  for (auto item = by_layer.rbegin(); item != by_layer.rend(); ++item)
    curves.push_back(curve_of(item->first, item->second));
  const bool measured = !rows.empty() && rows.front().top1;
  std::string body = chart({"sparsity", 0, 1, true},
                           {measured ? "top-1 accuracy" : "stored bytes of dense bytes", 0, 1, true}, curves);
  body +=
      "<table><tr><th>layers</th><th>sparsity</th><th>top-1</th><th>same class</th><th>bytes as bitmask</th>"
      "<th>bytes dense</th></tr>\n";
  for (const SweepRow& row : rows) body += table_row(row);
  return page(fmt::format("Sparsity of {}", model), body + "</table>");
}

}  // namespace mcompress
