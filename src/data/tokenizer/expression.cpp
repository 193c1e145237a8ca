#define PCRE2_CODE_UNIT_WIDTH 8
#include "expression.h"

#include <array>

#include <pcre2.h>

#include "mcompress/base/error.h"

namespace mcompress {

namespace {

PCRE2_SPTR as_code_units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

Expression::Expression(const std::string& source, const std::string& name) : source_(source) {
  if (source.find("&&") != std::string::npos)
    throw bad_data("{}: the regular expression '{}' intersects sets by '&&', which is not known", name,
                   source);
  int code = 0;
  PCRE2_SIZE offset = 0;
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
  pcre2_code* compiled =
      pcre2_compile(as_code_units(source), source.size(), kOptions, &code, &offset, nullptr);
  if (compiled == nullptr) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(code, text.data(), text.size());
    throw bad_data("{}: '{}' is not a regular expression: {} at offset {}", name, source,
                   reinterpret_cast<const char*>(text.data()), offset);
  }
  code_ = std::shared_ptr<void>(compiled, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // where it fails, matching is slower and no other
}

void Expression::find_all(std::string_view text, const std::function<void(size_t, size_t)>& use) const {
  constexpr uint32_t kMostSteps = 10'000'000;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  pcre2_set_match_limit(context.get(), kMostSteps);
  for (size_t at = 0; at < text.size();) {
    const int result = pcre2_match(code, as_code_units(text), text.size(), at, PCRE2_NO_UTF_CHECK, data.get(),
                                   context.get());
    if (result == PCRE2_ERROR_NOMATCH) return;
    if (result < 0)
      throw bad_data("the tokenizer's regular expression '{}' takes too long to match the text at byte {}",
                     source_, at);
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    if (ends[1] <= ends[0]) {  // nothing is there; the next character may begin a match
      at = ends[0] + 1;
      while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U) ++at;
      continue;
    }
    use(ends[0], ends[1]);
    at = ends[1];
  }
}

}  // namespace mcompress
