#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "expression.h"

namespace mcompress {

// Throws Error(65) where steps make much more of a text: 64 times as much and a megabyte.
void check_growth(size_t size, size_t text);

// A step that text passes through before it is cut. The names are those of the tokenizers library.
using Normalizer = std::function<std::string(std::string_view)>;

Normalizer lowercase();
Normalizer strip(bool left, bool right);  // white space
Normalizer strip_accents();               // marks, which NFD sets apart
Normalizer replace(std::string from, std::string to);
Normalizer replace(Expression from, std::string to);
Normalizer prepend(std::string prefix);  // to what is not empty

struct BertOptions {
  bool clean_text = true, handle_chinese_chars = true, strip_accents = true, lowercase = true;
};
Normalizer bert_normalizer(const BertOptions& options);

// The map that SentencePiece compiles its normalization rules into: a double-array trie (Darts-clone), then
// what it leads to, strings that end with a zero byte.
class CharacterMap {
 public:
  // Throws Error(65) naming `name` for a map that is cut short.
  CharacterMap(std::string_view compiled, const std::string& name);

  // What stands for the longest or shortest beginning of `text` that the map has, and how much of it that
  // is; `bytes` 0 for none.
  struct Match {
    size_t bytes = 0;
    std::string_view text;
  };
  enum class Prefer { kLongest, kShortest };
  Match find(std::string_view text, Prefer prefer) const;

 private:
  uint32_t unit(uint64_t place) const;

  std::vector<uint32_t> units_;
  std::string texts_;
};

// As SentencePiece applies the map: the longest beginning, again and again.
std::string apply_map(const CharacterMap& map, std::string_view text);

// As the tokenizers library applies it: to graphemes of up to 5 bytes as a whole, to the characters of
// others.
Normalizer precompiled(std::shared_ptr<const CharacterMap> map);

}  // namespace mcompress
