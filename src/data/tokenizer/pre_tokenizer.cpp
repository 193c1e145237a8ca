#include "pre_tokenizer.h"

#include <array>
#include <limits>
#include <utility>

#include "unicode.h"

namespace mcompress {

namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Reads characters of a text from a place on.
class Cursor {
 public:
  Cursor(std::string_view text, size_t at) : text_(text), at_(at) { read(); }

  size_t at() const { return at_; }
  bool at_end() const { return at_ >= text_.size(); }
  int32_t code() const { return character_.code; }
  bool is(CharClass wanted) const { return !at_end() && class_ == wanted; }
  bool is_line_end() const { return !at_end() && (code() == '\r' || code() == '\n'); }

  void step() {
    at_ += character_.bytes;
    read();
  }
  void skip(CharClass wanted, size_t limit = std::numeric_limits<size_t>::max()) {
    for (size_t count = 0; count < limit && is(wanted); ++count) step();
  }
  void skip_line_ends() {
    while (is_line_end()) step();
  }

 private:
  void read() {
    if (at_end()) return;
    character_ = character_at(text_, at_);
    class_ = class_of(character_.code);
  }

  std::string_view text_;
  size_t at_;
  Character character_{};
  CharClass class_ = CharClass::kOther;
};

// Bytes of 's, 't, 're, ... at `at`, or 0.
size_t contraction_at(std::string_view text, size_t at, bool any_case) {
  if (text[at] != '\'') return 0;
  constexpr std::string_view kLongS = "\u017F";  // folds to s
  if (any_case && text.substr(at + 1).starts_with(kLongS)) return 1 + kLongS.size();
  const auto letter = [&](size_t offset) {
    if (at + offset >= text.size()) return '\0';
    const char c = text[at + offset];
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  switch (letter(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd': return 2;
    case 'r':
    case 'v': return letter(2) == 'e' ? 3 : 0;
    case 'l': return letter(2) == 'l' ? 3 : 0;
    default: return 0;
  }
}

// \s+(?!\S)|\s+ at a space: the last space before other characters is left to them, unless it is the only
// one.
size_t end_of_spaces(std::string_view text, size_t at) {
  Cursor cursor(text, at);
  size_t last = at;
  while (cursor.is(CharClass::kSpace)) {
    last = cursor.at();
    cursor.step();
  }
  return cursor.at_end() || last == at ? cursor.at() : last;
}

size_t end_of_gpt2(std::string_view text, size_t at) {
  if (const size_t bytes = contraction_at(text, at, false)) return at + bytes;
  Cursor cursor(text, at);
  if (cursor.code() == ' ') cursor.step();
  for (const CharClass run : {CharClass::kLetter, CharClass::kNumber, CharClass::kOther}) {
    if (!cursor.is(run)) continue;
    cursor.skip(run);
    return cursor.at();
  }
  return end_of_spaces(text, at);
}

// \s*[\r\n]+ : up to the last line end among the spaces; 0 where there is none.
size_t end_of_lines(std::string_view text, size_t at) {
  size_t end = 0;
  for (Cursor cursor(text, at); cursor.is(CharClass::kSpace);) {
    const bool ends_line = cursor.is_line_end();
    cursor.step();
    if (ends_line) end = cursor.at();
  }
  return end;
}

size_t end_of_llama3(std::string_view text, size_t at, size_t digits) {
  if (const size_t bytes = contraction_at(text, at, true)) return at + bytes;
  Cursor cursor(text, at);
  if (cursor.is(CharClass::kNumber)) {
    cursor.skip(CharClass::kNumber, digits);
    return cursor.at();
  }
  Cursor word = cursor;
  if (!word.is(CharClass::kLetter) && !word.is_line_end()) word.step();
  if (word.is(CharClass::kLetter)) {
    word.skip(CharClass::kLetter);
    return word.at();
  }
  if (cursor.code() == ' ') cursor.step();
  if (cursor.is(CharClass::kOther)) {
    cursor.skip(CharClass::kOther);
    cursor.skip_line_ends();
    return cursor.at();
  }
  if (const size_t end = end_of_lines(text, at)) return end;
  return end_of_spaces(text, at);
}

size_t end_of_digits(std::string_view text, size_t at, size_t digits) {
  Cursor cursor(text, at);
  if (cursor.is(CharClass::kNumber)) {
    cursor.skip(CharClass::kNumber, digits);
  } else {
    while (!cursor.at_end() && !cursor.is(CharClass::kNumber)) cursor.step();
  }
  return cursor.at();
}

size_t end_of_piece(Split split, std::string_view text, size_t at) {
  constexpr size_t kAll = std::numeric_limits<size_t>::max();
  switch (split) {
    case Split::kGpt2: return end_of_gpt2(text, at);
    case Split::kLlama3: return end_of_llama3(text, at, 3);
    case Split::kQwen2: return end_of_llama3(text, at, 1);
    case Split::kDigits: return end_of_digits(text, at, 1);
    case Split::kDigitRuns: return end_of_digits(text, at, kAll);
  }
  return text.size();
}

}  // namespace

const Split* split_of_pattern(std::string_view pattern) {
  static constexpr std::array<std::pair<std::string_view, Split>, 3> kKnown = {
      {{kGpt2Pattern, Split::kGpt2}, {kLlama3Pattern, Split::kLlama3}, {kQwen2Pattern, Split::kQwen2}}};
  for (const auto& [known, split] : kKnown) {
    if (known == pattern) return &split;
  }
  return nullptr;
}

void split_text(Split split, std::string_view text, const UsePiece& use) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = end_of_piece(split, text, at);
    use(text.substr(at, end - at));
    at = end;
  }
}

}  // namespace mcompress
