#include "split_step.h"

#include <utility>
#include <vector>

#include "unicode.h"

namespace mcompress {

namespace {

struct Span {
  size_t begin, end;
  bool is_match;
};

// Spans of characters that are or are not matched, each match of its own.
template <typename IsMatch>
std::vector<Span> spans_of(std::string_view text, const IsMatch& is_match) {
  std::vector<Span> spans;
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    const size_t end = at + character.bytes;
    const bool match = is_match(character.code);
    if (!match && !spans.empty() && !spans.back().is_match) {
      spans.back().end = end;
    } else {
      spans.push_back({at, end, match});
    }
    at = end;
  }
  return spans;
}

// The matches of a pattern and what is between them.
class Spans {
 public:
  explicit Spans(std::string_view text) : text_(text) {}
  void add(size_t begin, size_t end) {
    if (begin > last_) spans_.push_back({last_, begin, false});
    spans_.push_back({begin, end, true});
    last_ = end;
  }
  std::vector<Span> take() {
    if (last_ < text_.size()) spans_.push_back({last_, text_.size(), false});
    return std::move(spans_);
  }

 private:
  std::string_view text_;
  size_t last_ = 0;
  std::vector<Span> spans_;
};

std::vector<Span> spans_of(std::string_view text, const std::variant<std::string, Expression>& pattern) {
  Spans spans(text);
  if (const auto* expression = std::get_if<Expression>(&pattern)) {
    expression->find_all(text, [&](size_t begin, size_t end) { spans.add(begin, end); });
  } else if (const auto& wanted = std::get<std::string>(pattern); !wanted.empty()) {
    for (size_t at = text.find(wanted); at != std::string_view::npos;
         at = text.find(wanted, at + wanted.size()))
      spans.add(at, at + wanted.size());
  }
  return spans.take();
}

void use_spans(std::string_view text, const std::vector<Span>& spans, Behavior behavior,
               const UsePiece& use) {
  // Whether a span goes into one piece with the one before it.
  const auto joins = [&](size_t i) {
    if (i == 0) return false;
    const bool before = spans[i - 1].is_match, here = spans[i].is_match;
    switch (behavior) {
      case Behavior::kMergedWithPrevious: return here && !before;
      case Behavior::kMergedWithNext: return before && !here;
      case Behavior::kContiguous: return before == here;
      default: return false;
    }
  };
  for (size_t i = 0; i < spans.size();) {
    size_t last = i;
    while (last + 1 < spans.size() && joins(last + 1)) ++last;
    if (behavior != Behavior::kRemoved || !spans[i].is_match)
      use(text.substr(spans[i].begin, spans[last].end - spans[i].begin));
    i = last + 1;
  }
}

bool is_space(int32_t code) { return class_of(code) == CharClass::kSpace; }

}  // namespace

SplitStep split_by_pattern(Split split, bool prefix_space) {
  return [=](std::string_view text, bool, const UsePiece& use) {
    prefix_space && !text.starts_with(' ') ? split_text(split, " " + std::string(text), use)
                                           : split_text(split, text, use);
  };
}

SplitStep split_by_expression(std::variant<std::string, Expression> pattern, Behavior behavior, bool invert) {
  return [pattern = std::move(pattern), behavior, invert](std::string_view text, bool, const UsePiece& use) {
    std::vector<Span> spans = spans_of(text, pattern);
    if (invert) {
      for (Span& span : spans) span.is_match = !span.is_match;
    }
    use_spans(text, spans, behavior, use);
  };
}

SplitStep split_punctuation(Behavior behavior) {
  return [behavior](std::string_view text, bool, const UsePiece& use) {
    use_spans(text, spans_of(text, is_punctuation), behavior, use);
  };
}

SplitStep split_white_space() {
  return [](std::string_view text, bool, const UsePiece& use) {
    use_spans(text, spans_of(text, is_space), Behavior::kRemoved, use);
  };
}

SplitStep split_words() {
  enum Kind { kSpace, kWord, kOther };
  const auto kind_of = [](int32_t code) { return is_space(code) ? kSpace : is_word(code) ? kWord : kOther; };
  return [kind_of](std::string_view text, bool, const UsePiece& use) {
    for (size_t at = 0; at < text.size();) {
      const size_t begin = at;
      const Kind kind = kind_of(character_at(text, at).code);
      while (at < text.size() && kind_of(character_at(text, at).code) == kind)
        at += character_at(text, at).bytes;
      if (kind != kSpace) use(text.substr(begin, at - begin));
    }
  };
}

SplitStep split_for_bert() {
  return [](std::string_view text, bool, const UsePiece& use) {
    use_spans(text, spans_of(text, is_space), Behavior::kRemoved, [&](std::string_view word) {
      use_spans(word, spans_of(word, is_punctuation), Behavior::kIsolated, use);
    });
  };
}

SplitStep metaspace(std::string replacement, Prepend prepend, bool split) {
  return [replacement = std::move(replacement), prepend, split](std::string_view text, bool at_start,
                                                                const UsePiece& use) {
    std::string marked;
    for (const char byte : text) {
      byte == ' ' ? void(marked += replacement) : void(marked += byte);
    }
    const bool wanted = prepend == Prepend::kAlways || (prepend == Prepend::kFirst && at_start);
    if (wanted && !marked.starts_with(replacement)) marked.insert(0, replacement);
    if (!split) return use(marked);
    use_spans(marked, spans_of(marked, std::variant<std::string, Expression>(replacement)),
              Behavior::kMergedWithNext, use);
  };
}

}  // namespace mcompress
