#pragma once

#include <memory>
#include <string>

namespace mcompress {

// A PCRE2 regular expression, found anywhere in a text (anchor with ^ and $). Matching is bounded:
// an expression that backtracks without end throws Error(2) instead of hanging.
class Pattern {
 public:
  explicit Pattern(const std::string& expression);  // throws Error(2) naming the place
  bool matches(const std::string& text) const;
  const std::string& expression() const { return expression_; }

 private:
  std::string expression_;
  std::shared_ptr<void> code_;
};

}  // namespace mcompress
