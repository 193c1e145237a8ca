#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mcompress {

// What the patterns of pre-tokenizers tell apart: \p{L}, \p{N}, \s and everything else.
enum class CharClass : uint8_t { kLetter, kNumber, kSpace, kOther };

struct Character {
  int32_t code;
  size_t bytes;  // of its UTF-8
};

// The character at `at`, inside a text that check_utf8 has passed.
Character character_at(std::string_view text, size_t at);
CharClass class_of(int32_t code);

bool is_word(int32_t code);  // \w: letters, marks, decimal and letter numbers, connectors, joiners

void append_character(int32_t code, std::string& text);

// Throws Error(65) naming the offset of the first byte that is no UTF-8.
void check_utf8(std::string_view text);

bool is_punctuation(
    int32_t code);  // categories P*, and all of ASCII that is no letter, digit, space or control

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
std::string normal_form(std::string_view text, NormalForm form);

}  // namespace mcompress
