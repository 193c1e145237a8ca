#pragma once

#include <string>
#include <vector>

namespace mcompress {

// Text inside HTML.
std::string escaped(const std::string& text);

struct Axis {
  std::string label;
  double low = 0, high = 1;
  bool percent = false;  // whether 1 is shown as 100 %
};

struct Point {
  double x, y;
  std::string tip;  // shown where the pointer rests on it
};

struct Curve {
  std::string name, style;  // style: "main", "other" or "part"
  std::vector<Point> points;
};

// An SVG with both axes, later curves on top, and their names where there is more than one style.
std::string chart(const Axis& x, const Axis& y, const std::vector<Curve>& curves);

// A whole HTML page that needs no other file.
std::string page(const std::string& title, const std::string& body);

}  // namespace mcompress
