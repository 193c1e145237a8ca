#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "piece_model.h"

namespace mcompress {

// A token that is found in the text as it is spelt, before anything is merged.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;             // not inside a word
  bool lstrip = false, rstrip = false;  // takes the white space on that side along
  bool normalized = false;              // is looked for in normalized text
};

// Finds added tokens: the leftmost, of several at one place the longest.
class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Part {
    std::string_view text;
    const AddedToken* token;  // nullptr for text between tokens, which is never empty
  };
  std::vector<Part> split(std::string_view text) const;

 private:
  const AddedToken* match_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  StringMap<size_t> by_content_;
  std::vector<std::vector<size_t>> lengths_;  // of the tokens that begin with a byte, the longest first
};

}  // namespace mcompress
