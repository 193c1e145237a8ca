#pragma once

#include <functional>
#include <string_view>

namespace mcompress {

// One way of cutting a text into pieces, between which no token reaches. The patterns are run as code, which
// takes time in proportion to the text whatever it holds.
enum class Split {
  kGpt2,    // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kLlama3,  // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
            // \s*[\r\n]+|\s+(?!\S)|\s+
  kQwen2,   // the same with \p{N} in place of \p{N}{1,3}
  kDigits,  // each \p{N} alone
  kDigitRuns
};

// The split that a pattern of a tokenizer.json stands for; nullptr where it is not known.
const Split* split_of_pattern(std::string_view pattern);

using UsePiece = std::function<void(std::string_view piece)>;

// Gives each piece of `text` in turn; together they are the text.
void split_text(Split split, std::string_view text, const UsePiece& use);

}  // namespace mcompress
