#include "normalizer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <utf8proc.h>

#include "mcompress/base/error.h"
#include "unicode.h"

namespace mcompress {

namespace {

// Gives each character with its bytes.
template <typename Use>
void each_character(std::string_view text, const Use& use) {
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    use(character.code, text.substr(at, character.bytes));
    at += character.bytes;
  }
}

template <typename Keep>
std::string kept(std::string_view text, const Keep& keep) {
  std::string result;
  each_character(text, [&](int32_t code, std::string_view bytes) {
    if (keep(code)) result += bytes;
  });
  return result;
}

bool is_nonspacing_mark(int32_t code) { return utf8proc_category(code) == UTF8PROC_CATEGORY_MN; }

bool is_mark(int32_t code) {
  const auto category = utf8proc_category(code);
  return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

std::string without_accents(std::string_view text) {
  return kept(normal_form(text, NormalForm::kNfd), [](int32_t code) { return !is_nonspacing_mark(code); });
}

std::string lowered(std::string_view text) {
  constexpr int32_t kDottedI = 0x130;
  std::string result;
  each_character(text, [&](int32_t code, std::string_view) {
    code == kDottedI ? void(result += "i\u0307") : append_character(utf8proc_tolower(code), result);
  });
  return result;
}

bool is_control(int32_t code) {
  const auto category = utf8proc_category(code);
  return code != '\t' && code != '\n' && code != '\r' &&
         (category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF ||
          category == UTF8PROC_CATEGORY_CO);
}

// The CJK blocks that BERT sets apart, each character a word.
bool is_chinese(int32_t code) {
  return (code >= 0x4E00 && code <= 0x9FFF) || (code >= 0x3400 && code <= 0x4DBF) ||
         (code >= 0x20000 && code <= 0x2A6DF) || (code >= 0x2A700 && code <= 0x2B73F) ||
         (code >= 0x2B740 && code <= 0x2B81F) || (code >= 0x2B920 && code <= 0x2CEAF) ||
         (code >= 0xF900 && code <= 0xFAFF) || (code >= 0x2F800 && code <= 0x2FA1F);
}

std::string cleaned(std::string_view text) {
  constexpr int32_t kReplacement = 0xFFFD;
  std::string result;
  each_character(text, [&](int32_t code, std::string_view bytes) {
    if (code == 0 || code == kReplacement || is_control(code)) return;
    class_of(code) == CharClass::kSpace ? void(result += ' ') : void(result += bytes);
  });
  return result;
}

std::string with_chinese_apart(std::string_view text) {
  std::string result;
  each_character(text, [&](int32_t code, std::string_view bytes) {
    is_chinese(code) ? void(result.append(" ").append(bytes).append(" ")) : void(result += bytes);
  });
  return result;
}

// Where the grapheme ends that begins at `at`.
size_t end_of_grapheme(std::string_view text, size_t at) {
  utf8proc_int32_t state = 0;
  Character character = character_at(text, at);
  while (true) {
    const size_t next = at + character.bytes;
    if (next >= text.size()) return text.size();
    const Character following = character_at(text, next);
    if (utf8proc_grapheme_break_stateful(character.code, following.code, &state)) return next;
    at = next;
    character = following;
  }
}

}  // namespace

void check_growth(size_t size, size_t text) {
  constexpr size_t kTimes = 64, kAlways = size_t{1} << 20U;
  if (size > kTimes * text + kAlways)
    throw bad_data("the tokenizer's normalizers make more than {} times as much of the text", kTimes);
}

Normalizer lowercase() { return lowered; }

Normalizer strip_accents() {
  return [](std::string_view text) { return kept(text, [](int32_t code) { return !is_mark(code); }); };
}

Normalizer strip(bool left, bool right) {
  return [=](std::string_view text) {
    size_t begin = 0, end = text.size(), last = 0;
    bool leading = true;
    size_t at = 0;
    each_character(text, [&](int32_t code, std::string_view bytes) {
      at += bytes.size();
      const bool space = class_of(code) == CharClass::kSpace;
      leading = leading && space;
      if (leading) begin = at;
      if (!space) last = at;
    });
    if (!left) begin = 0;
    if (right) end = std::max(begin, last);
    return std::string(text.substr(begin, end - begin));
  };
}

Normalizer replace(std::string from, std::string to) {
  return [from = std::move(from), to = std::move(to)](std::string_view text) {
    std::string result;
    size_t begin = 0;
    for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, begin)) {
      result.append(text.substr(begin, at - begin)).append(to);
      check_growth(result.size(), text.size());
      begin = at + from.size();
    }
    return result.append(text.substr(begin));
  };
}

Normalizer replace(Expression from, std::string to) {
  return [from = std::move(from), to = std::move(to)](std::string_view text) {
    std::string result;
    size_t last = 0;
    from.find_all(text, [&](size_t begin, size_t end) {
      result.append(text.substr(last, begin - last)).append(to);
      check_growth(result.size(), text.size());
      last = end;
    });
    return result.append(text.substr(last));
  };
}

Normalizer prepend(std::string prefix) {
  return [prefix = std::move(prefix)](std::string_view text) {
    return text.empty() ? std::string() : prefix + std::string(text);
  };
}

Normalizer bert_normalizer(const BertOptions& options) {
  return [options](std::string_view text) {
    std::string result(text);
    if (options.clean_text) result = cleaned(result);
    if (options.handle_chinese_chars) result = with_chinese_apart(result);
    if (options.strip_accents) result = without_accents(result);
    if (options.lowercase) result = lowered(result);
    return result;
  };
}

namespace {

bool continues_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

}  // namespace

CharacterMap::CharacterMap(std::string_view compiled, const std::string& name) {
  uint32_t bytes = 0;
  if (compiled.size() >= sizeof(bytes)) std::memcpy(&bytes, compiled.data(), sizeof(bytes));
  if (bytes == 0 || bytes % sizeof(uint32_t) != 0 || bytes > compiled.size() - sizeof(bytes))
    throw bad_data("{}: its compiled map of characters, of {} bytes, is cut short", name, compiled.size());
  units_.resize(bytes / sizeof(uint32_t));
  std::memcpy(units_.data(), compiled.data() + sizeof(bytes), bytes);
  texts_ = compiled.substr(sizeof(bytes) + bytes);
  check_utf8(texts_);
}

// A unit with a label that no byte has where the place is outside.
uint32_t CharacterMap::unit(uint64_t place) const {
  constexpr uint32_t kNone = 0x80000000U;
  return place < units_.size() ? units_[place] : kNone;
}

CharacterMap::Match CharacterMap::find(std::string_view text, Prefer prefer) const {
  const auto offset = [](uint32_t unit) { return uint64_t{unit >> 10U} << ((unit & (1U << 9U)) >> 6U); };
  Match match;
  uint64_t place = offset(unit(0));
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    place ^= byte;
    const uint32_t found = unit(place);
    if ((found & (0x80000000U | 0xFFU)) != byte) break;
    place ^= offset(found);
    constexpr uint32_t kHasLeaf = 1U << 8U;
    if ((found & kHasLeaf) == 0) continue;
    const size_t begin = unit(place) & 0x7FFFFFFFU;
    // A damaged map may point into the middle of a character, of the text or of its own.
    if (begin >= texts_.size() || continues_character(texts_[begin])) break;
    if (i + 1 < text.size() && continues_character(text[i + 1])) continue;
    match = {i + 1, std::string_view(texts_).substr(begin, texts_.find('\0', begin) - begin)};
    if (prefer == Prefer::kShortest) break;
  }
  return match;
}

std::string apply_map(const CharacterMap& map, std::string_view text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const CharacterMap::Match match = map.find(text.substr(at), CharacterMap::Prefer::kLongest);
    const size_t bytes = match.bytes > 0 ? match.bytes : character_at(text, at).bytes;
    result += match.bytes > 0 ? match.text : text.substr(at, bytes);
    check_growth(result.size(), text.size());
    at += bytes;
  }
  return result;
}

Normalizer precompiled(std::shared_ptr<const CharacterMap> map) {
  return [map = std::move(map)](std::string_view text) {
    constexpr size_t kWhole = 6;
    std::string result;
    for (size_t at = 0; at < text.size();) {
      check_growth(result.size(), text.size());
      const std::string_view grapheme = text.substr(at, end_of_grapheme(text, at) - at);
      at += grapheme.size();
      if (grapheme.size() < kWhole) {
        const CharacterMap::Match match = map->find(grapheme, CharacterMap::Prefer::kShortest);
        if (match.bytes > 0) {
          result += match.text;
          continue;
        }
      }
      each_character(grapheme, [&](int32_t, std::string_view bytes) {
        const CharacterMap::Match match = map->find(bytes, CharacterMap::Prefer::kShortest);
        result += match.bytes > 0 ? match.text : bytes;
      });
    }
    return result;
  };
}

}  // namespace mcompress
