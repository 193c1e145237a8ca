#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace mcompress {

// A regular expression of a tokenizer, by PCRE2 with Unicode's classes. Matching is bounded: an expression
// that takes more than 10 million steps for one match, or 10 seconds a megabyte, throws Error(65).
class Expression {
 public:
  // Throws Error(65) for one that PCRE2 cannot compile, that may match nothing, or that holds what PCRE2
  // understands otherwise than Oniguruma, with which the tokenizers library runs it.
  Expression(const std::string& source, const std::string& name);

  // Gives each match that is not empty, from left to right.
  void find_all(std::string_view text, const std::function<void(size_t begin, size_t end)>& use) const;

 private:
  std::string source_;
  std::shared_ptr<void> code_;
};

}  // namespace mcompress
