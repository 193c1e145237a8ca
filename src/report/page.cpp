#include "page.h"

#include <algorithm>

#include <fmt/format.h>

namespace mcompress {

namespace {

constexpr double kWidth = 720, kHeight = 400, kLeft = 70, kRight = 20, kTop = 20, kBottom = 40;

constexpr const char* kStyle =
    "body{font:14px sans-serif;margin:2em}svg text{font-size:11px}.grid{stroke:#ddd}polyline{fill:none}"
    ".main polyline{stroke:#06c;stroke-width:2.5}.main circle,.main text{fill:#06c}"
    ".other polyline{stroke:#c60;stroke-width:2}.other circle,.other text{fill:#c60}"
    ".part polyline{stroke:#999}.part circle{fill:#999}.part:hover polyline{stroke:#c30;stroke-width:2.5}"
    "td,th{padding:2px 12px;text-align:right}td:first-child{text-align:left}";

double share_of(const Axis& axis, double value) {
  return axis.high > axis.low ? (value - axis.low) / (axis.high - axis.low) : 0.5;
}
double place_x(const Axis& axis, double value) {
  return kLeft + share_of(axis, value) * (kWidth - kLeft - kRight);
}
double place_y(const Axis& axis, double value) {
  return kHeight - kBottom - share_of(axis, value) * (kHeight - kBottom - kTop);
}

std::string tick_text(const Axis& axis, double value) {
  return axis.percent ? fmt::format("{:.4g} %", 100 * value) : fmt::format("{:.4g}", value);
}

std::string axes(const Axis& x, const Axis& y) {
  std::string svg;
  constexpr int kTicks = 10;
  for (int tick = 0; tick <= kTicks; ++tick) {
    const double part = static_cast<double>(tick) / kTicks;
    const double vx = x.low + part * (x.high - x.low), vy = y.low + part * (y.high - y.low);
    svg += fmt::format(
        R"(<line class="grid" x1="{0:.1f}" y1="{1:.1f}" x2="{2:.1f}" y2="{1:.1f}"/><text x="{3:.1f}" y="{4:.1f}" text-anchor="end">{5}</text>)",
        kLeft, place_y(y, vy), kWidth - kRight, kLeft - 6, place_y(y, vy) + 4, tick_text(y, vy));
    svg += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>)", place_x(x, vx),
                       kHeight - kBottom + 18, tick_text(x, vx));
  }
  return svg + fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>)"
                           R"(<text x="{:.1f}" y="12">{}</text>)",
                           (kLeft + kWidth) / 2, kHeight - 4, x.label, kLeft, y.label);
}

std::string drawn(const Curve& curve, const Axis& x, const Axis& y) {
  std::string points, marks;
  for (const Point& point : curve.points) {
    const double px = place_x(x, point.x), py = place_y(y, point.y);
    points += fmt::format("{:.1f},{:.1f} ", px, py);
    marks += fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>)", px, py,
                         escaped(point.tip));
  }
  return fmt::format("<polyline points=\"{}\"/>{}", points, marks);
}

}  // namespace

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

std::string chart(const Axis& x, const Axis& y, const std::vector<Curve>& curves) {
  std::string svg = axes(x, y);
  const bool named =
      std::any_of(curves.begin(), curves.end(), [&](const Curve& curve) { return curve.style == "other"; });
  double line = kTop + 14;
  for (const Curve& curve : curves) {
    svg += fmt::format("<g class=\"{}\">{}", curve.style, drawn(curve, x, y));
    if (named)
      svg += fmt::format(R"(<text x="{:.1f}" y="{:.1f}">{}</text>)", kLeft + 12, line, escaped(curve.name));
    svg += "</g>\n";
    line += 14;
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0f}\" height=\"{:.0f}\" role=\"img\">{}</svg>\n",
      kWidth, kHeight, svg);
}

std::string page(const std::string& title, const std::string& body) {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>"
      "<style>{1}</style></head>\n<body><h1>{0}</h1>\n{2}</body></html>\n",
      escaped(title), kStyle, body);
}

}  // namespace mcompress
