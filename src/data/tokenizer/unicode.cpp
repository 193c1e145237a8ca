#include "unicode.h"

#include <algorithm>
#include <array>
#include <vector>

#include <utf8proc.h>

#include "mcompress/base/error.h"

namespace mcompress {

namespace {

const utf8proc_uint8_t* as_code_units(std::string_view text) {
  return reinterpret_cast<const utf8proc_uint8_t*>(text.data());
}

// White_Space of Unicode, which has no category of its own.
bool is_space(int32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
         code == 0x205F || code == 0x3000;
}

CharClass look_up(int32_t code) {
  if (is_space(code)) return CharClass::kSpace;
  const auto category = utf8proc_category(code);
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return CharClass::kLetter;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return CharClass::kNumber;
  return CharClass::kOther;
}

constexpr int32_t kAscii = 128;

std::array<CharClass, kAscii> ascii_classes() {
  std::array<CharClass, kAscii> classes{};
  for (int32_t code = 0; code < kAscii; ++code) classes[static_cast<size_t>(code)] = look_up(code);
  return classes;
}

}  // namespace

Character character_at(std::string_view text, size_t at) {
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < kAscii) return {first, 1};
  int32_t code = 0;
  const auto bytes = utf8proc_iterate(as_code_units(text) + at, static_cast<long>(text.size() - at), &code);
  return {code, static_cast<size_t>(std::max<utf8proc_ssize_t>(bytes, 1))};
}

CharClass class_of(int32_t code) {
  static const auto ascii = ascii_classes();
  return code < kAscii ? ascii[static_cast<size_t>(code)] : look_up(code);
}

bool is_word(int32_t code) {
  // Letters in circles and squares, which are alphabetic without being letters.
  const bool circled = (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
                       (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
  if (circled) return true;
  constexpr int32_t kNonJoiner = 0x200C, kJoiner = 0x200D;
  const auto category = utf8proc_category(code);
  return class_of(code) == CharClass::kLetter || code == kNonJoiner || code == kJoiner ||
         (category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME) ||
         category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_PC;
}

void append_character(int32_t code, std::string& text) {
  std::array<utf8proc_uint8_t, 4> bytes{};
  const auto count = utf8proc_encode_char(code, bytes.data());
  text.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(count));
}

void check_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < kAscii) {
      ++at;
      continue;
    }
    int32_t code = 0;
    const auto bytes = utf8proc_iterate(as_code_units(text) + at, static_cast<long>(text.size() - at), &code);
    if (bytes < 1) throw bad_data("the text is not UTF-8 at byte {}; convert it to UTF-8", at);
    at += static_cast<size_t>(bytes);
  }
}

bool is_punctuation(int32_t code) {
  if (code < kAscii) return code > ' ' && code < 0x7F && class_of(code) == CharClass::kOther;
  const auto category = utf8proc_category(code);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

namespace {

int combining_class(int32_t code) { return utf8proc_get_property(code)->combining_class; }

// Marks in a row stand in the order of their classes. utf8proc's own sort takes the square of their number.
void sort_marks(std::vector<int32_t>& codes) {
  for (auto at = codes.begin(); at != codes.end();) {
    const auto is_mark = [](int32_t code) { return combining_class(code) != 0; };
    const auto begin = std::find_if(at, codes.end(), is_mark);
    at = std::find_if_not(begin, codes.end(), is_mark);
    std::stable_sort(begin, at, [](int32_t a, int32_t b) { return combining_class(a) < combining_class(b); });
  }
}

}  // namespace

std::string normal_form(std::string_view text, NormalForm form) {
  const bool composes = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                     (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<int32_t> codes;
  codes.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    std::array<int32_t, 32> parts{};  // the longest decomposition has 18
    const auto count = utf8proc_decompose_char(character.code, parts.data(), parts.size(), options, nullptr);
    if (count < 0 || static_cast<size_t>(count) > parts.size())
      throw bad_data("the text cannot be normalized: {}", utf8proc_errmsg(count));
    codes.insert(codes.end(), parts.begin(), parts.begin() + count);
    at += character.bytes;
  }
  sort_marks(codes);
  auto count = static_cast<utf8proc_ssize_t>(codes.size());
  if (composes) count = utf8proc_normalize_utf32(codes.data(), count, options);
  std::string result;
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_character(codes[static_cast<size_t>(i)], result);
  return result;
}

}  // namespace mcompress
