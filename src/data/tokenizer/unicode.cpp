#include "unicode.h"

#include <array>
#include <cstdlib>
#include <memory>

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
  return {code, static_cast<size_t>(bytes)};
}

CharClass class_of(int32_t code) {
  static const auto ascii = ascii_classes();
  return code < kAscii ? ascii[static_cast<size_t>(code)] : look_up(code);
}

bool is_word(int32_t code) {
  constexpr int32_t kNonJoiner = 0x200C, kJoiner = 0x200D;
  const auto category = utf8proc_category(code);
  return class_of(code) == CharClass::kLetter || code == kNonJoiner || code == kJoiner ||
         (category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME) ||
         category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_PC;
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

std::string normal_form(std::string_view text, NormalForm form) {
  const bool composes = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                     (compatible ? UTF8PROC_COMPAT : 0));
  utf8proc_uint8_t* result = nullptr;
  const auto size = utf8proc_map(as_code_units(text), static_cast<long>(text.size()), &result, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, std::free);
  if (size < 0) throw bad_data("the text cannot be normalized: {}", utf8proc_errmsg(size));
  return {reinterpret_cast<const char*>(result), static_cast<size_t>(size)};
}

}  // namespace mcompress
