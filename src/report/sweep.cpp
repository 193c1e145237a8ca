#include "mcompress/report/sweep.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "mcompress/base/text.h"

namespace mcompress {

namespace {

std::string percent(const std::optional<Share>& share) {
  return share ? fmt::format("{:.2f} %", 100 * share->value()) : "-";
}

constexpr double kWidth = 720, kHeight = 400, kLeft = 60, kBottom = 40;  // of the drawing, and its margins

std::string escaped(const std::string& text) {
  std::string result;
  for (const char letter : text) {
    switch (letter) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += letter;
    }
  }
  return result;
}

// What the curve shows of a row, from 0 to 1.
double height_of(const SweepRow& row) {
  if (row.top1) return row.top1->value();
  return std::min(1.0, static_cast<double>(row.stored_bytes) / static_cast<double>(row.dense_bytes));
}

double x_of(double sparsity) { return kLeft + sparsity * (kWidth - kLeft - 20); }
double y_of(double value) { return kHeight - kBottom - value * (kHeight - kBottom - 20); }

std::string axes(const char* label) {
  std::string svg;
  constexpr int kTicks = 10;
  for (int tick = 0; tick <= kTicks; ++tick) {
    const double value = static_cast<double>(tick) / kTicks;
    svg += fmt::format(
        R"(<line class="grid" x1="{0:.1f}" y1="{1:.1f}" x2="{2:.1f}" y2="{1:.1f}"/><text x="{3:.1f}" y="{4:.1f}" text-anchor="end">{5:.0f} %</text>)",
        x_of(0), y_of(value), x_of(1), kLeft - 6, y_of(value) + 4, 100 * value);
    svg += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.0f} %</text>)", x_of(value),
                       kHeight - kBottom + 18, 100 * value);
  }
  return svg + fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">sparsity</text>)"
                           R"(<text x="{:.1f}" y="12">{}</text>)",
                           x_of(0.5), kHeight - 4, x_of(0), label);
}

std::string curve(const std::string& layer, const std::vector<SweepRow>& rows) {
  std::string points, marks;
  for (const SweepRow& row : rows) {
    const double x = x_of(row.target), y = y_of(height_of(row));
    points += fmt::format("{:.1f},{:.1f} ", x, y);
    marks +=
        fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="3"><title>{} at {:.3g}: {:.2f} %</title></circle>)",
                    x, y, layer.empty() ? "all" : escaped(layer), row.target, 100 * height_of(row));
  }
  return fmt::format("<g class=\"{}\"><polyline points=\"{}\"/>{}</g>\n", layer.empty() ? "all" : "layer",
                     points, marks);
}

std::string table_row(const SweepRow& row) {
  return fmt::format("<tr><td>{}</td><td>{:.3g}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                     row.layer.empty() ? "all" : escaped(row.layer), row.target, percent(row.top1),
                     percent(row.agreement), row.stored_bytes, row.dense_bytes);
}

constexpr const char* kStyle =
    "body{font:14px sans-serif;margin:2em}svg text{font-size:11px}.grid{stroke:#ddd}polyline{fill:none}"
    ".all polyline{stroke:#06c;stroke-width:2.5}.all circle{fill:#06c}.layer polyline{stroke:#999}"
    ".layer circle{fill:#999}.layer:hover polyline{stroke:#c30;stroke-width:2.5}"
    "td,th{padding:2px 12px;text-align:right}td:first-child{text-align:left}";

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
  std::map<std::string, std::vector<SweepRow>> curves;  // layers first, so that the whole lies on top
  for (const SweepRow& row : rows) curves[row.layer].push_back(row);
  std::string svg =
      axes(!rows.empty() && rows.front().top1 ? "top-1 accuracy" : "stored bytes of dense bytes");
  for (auto item = curves.rbegin(); item != curves.rend(); ++item) svg += curve(item->first, item->second);
  std::string table;
  for (const SweepRow& row : rows) table += table_row(row);
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Sparsity of {0}</title>"
      "<style>{1}</style></head>\n<body><h1>Sparsity of {0}</h1>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{2:.0f}\" height=\"{3:.0f}\" "
      "role=\"img\">{4}</svg>\n"
      "<table><tr><th>layers</th><th>sparsity</th><th>top-1</th><th>same class</th><th>bytes as bitmask</th>"
      "<th>bytes dense</th></tr>\n{5}</table></body></html>\n",
      escaped(model), kStyle, kWidth, kHeight, svg, table);
}

}  // namespace mcompress
