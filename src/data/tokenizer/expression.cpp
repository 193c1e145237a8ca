#define PCRE2_CODE_UNIT_WIDTH 8
#include "expression.h"

#include <array>

#include <pcre2.h>

#include "mcompress/base/clock.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace {

PCRE2_SPTR as_code_units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

// What has another meaning in Oniguruma, or a part of the Unicode tables that differs.
void check_syntax(const std::string& source, const std::string& name) {
  const auto refuse = [&](std::string_view what) {
    return bad_data("{}: the regular expression '{}' has {}, which is not known", name, source, what);
  };
  bool in_set = false;
  for (size_t i = 0; i < source.size(); ++i) {
    const std::string_view rest = std::string_view(source).substr(i);
    if (rest.size() > 1 && rest[0] == '\\') {
      if (std::string_view("wWbBhHRXGAzZkK").find(rest[1]) != std::string_view::npos)
        throw refuse(rest.substr(0, 2));
      ++i;
    } else if (in_set) {
      if (rest.starts_with("&&") || rest[0] == '[')
        throw refuse(rest.starts_with("[:") ? "a POSIX class" : "a set of sets");
      in_set = rest[0] != ']';
    } else if (rest[0] == '[') {
      in_set = true;
      if (rest.starts_with("[]") || rest.starts_with("[^]")) throw refuse("a set that begins with ']'");
    } else if (rest.starts_with("{,")) {
      throw refuse("'{,'");
    } else if (rest.starts_with("}+")) {
      throw refuse("'}+'");
    } else if (rest.starts_with("(?") && rest.size() > 2) {
      const bool known = std::string_view(":=!<").find(rest[2]) != std::string_view::npos ||
                         rest.starts_with("(?i:") || rest.starts_with("(?i)");
      if (!known) throw refuse(rest.substr(0, 3));
    } else if (rest.starts_with("(*")) {
      throw refuse("'(*'");
    }
  }
}

// Room for the matches of long pieces, which the usual 32 KiB are not.
constexpr size_t kJitStack = size_t{1} << 20U;

template <auto Free>
struct Freer {
  void operator()(auto* pointer) const { Free(pointer); }
};

}  // namespace

Expression::Expression(const std::string& source, const std::string& name) : source_(source) {
  check_syntax(source, name);
  int code = 0;
  PCRE2_SIZE offset = 0;
  // In Oniguruma ^ and $ match at each line.
  constexpr uint32_t kOptions =
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
  pcre2_code* compiled =
      pcre2_compile(as_code_units(source), source.size(), kOptions, &code, &offset, nullptr);
  if (compiled == nullptr) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(code, text.data(), text.size());
    throw bad_data("{}: '{}' is not a regular expression: {} at offset {}", name, source,
                   reinterpret_cast<const char*>(text.data()), offset);
  }
  code_ = std::shared_ptr<void>(compiled, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  uint32_t empty = 0;
  pcre2_pattern_info(compiled, PCRE2_INFO_MATCHEMPTY, &empty);
  if (empty != 0)
    throw bad_data("{}: the regular expression '{}' may match nothing, which is not known", name, source);
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // where it fails, matching is slower and no other
}

void Expression::find_all(std::string_view text, const std::function<void(size_t, size_t)>& use) const {
  constexpr uint32_t kMostSteps = 10'000'000;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>> context(
      pcre2_match_context_create(nullptr));
  const std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>> data(
      pcre2_match_data_create_from_pattern(code, nullptr));
  const std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>> stack(
      pcre2_jit_stack_create(kJitStack / 32, kJitStack, nullptr));
  pcre2_set_match_limit(context.get(), kMostSteps);
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  const auto match = [&](size_t at, uint32_t options) {
    return pcre2_match(code, as_code_units(text), text.size(), at, options | PCRE2_NO_UTF_CHECK, data.get(),
                       context.get());
  };
  const auto too_long = [&](size_t at) {
    return bad_data("the tokenizer's regular expression '{}' takes too long to match the text at byte {}",
                    source_, at);
  };
  const auto deadline = Clock::now() + std::chrono::seconds(10 + 10 * (text.size() >> 20U));
  for (size_t at = 0; at < text.size();) {
    check_interrupt();
    if (Clock::now() > deadline) throw too_long(at);
    int result = match(at, 0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(at, PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return;
    if (result == PCRE2_ERROR_MATCHLIMIT) throw too_long(at);
    if (result < 0)
      throw bad_data("the tokenizer's regular expression '{}' cannot be matched at byte {}: PCRE2 error {}",
                     source_, at, result);
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
