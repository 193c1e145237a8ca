#define PCRE2_CODE_UNIT_WIDTH 8
#include "mcompress/base/pattern.h"

#include <array>

#include <pcre2.h>

#include "mcompress/base/error.h"

namespace mcompress {

namespace {

PCRE2_SPTR as_code_units(const std::string& text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

Pattern::Pattern(const std::string& expression) : expression_(expression) {
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* compiled =
      pcre2_compile(as_code_units(expression), expression.size(), 0, &code, &offset, nullptr);
  if (compiled == nullptr) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(code, text.data(), text.size());
    throw error(Exit::kUsage, "'{}' is not a regular expression: {} at offset {}", expression,
                reinterpret_cast<const char*>(text.data()), offset);
  }
  code_ = std::shared_ptr<void>(compiled, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
}

bool Pattern::matches(const std::string& text) const {
  constexpr uint32_t kMatchLimit = 1'000'000;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  pcre2_set_match_limit(context.get(), kMatchLimit);
  const int result = pcre2_match(code, as_code_units(text), text.size(), 0, 0, data.get(), context.get());
  if (result >= 0) return true;
  if (result == PCRE2_ERROR_NOMATCH) return false;
  throw error(Exit::kUsage, "'{}' takes too long to match '{}'; simplify the expression", expression_, text);
}

}  // namespace mcompress
