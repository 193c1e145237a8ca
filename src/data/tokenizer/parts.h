#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "added_tokens.h"
#include "bpe.h"
#include "mcompress/data/tokenizer.h"
#include "pre_tokenizer.h"

namespace mcompress {

// A split, before which a space may be put in front of the text.
struct SplitStep {
  Split split;
  bool prefix_space = false;
};

// The steps of a tokenizer in the order in which text passes through them.
struct Tokenizer::Parts {
  AddedTokens in_raw_text, in_normalized_text;
  std::vector<std::function<std::string(std::string_view)>> normalizers;
  std::vector<SplitStep> splits;
  Bpe model;
  std::vector<int32_t> before, after;  // special tokens around a single text
  std::unordered_map<int32_t, std::string> bytes_of;
  std::string kind;
};

// What a byte-level vocabulary is read from, whatever file it lies in: tokens in the alphabet that byte-level
// BPE writes bytes in, and pairs of them by rank.
struct ByteLevelVocabulary {
  std::vector<std::pair<std::string, int32_t>> tokens;
  std::vector<std::pair<std::string, std::string>> merges;
  bool whole_first = false;
};

// Bytes to id, and the model. Throws Error(65) naming `name` for ids that two tokens share, and for merges of
// what is no token.
Bpe byte_level_bpe(const ByteLevelVocabulary& vocabulary, const std::string& name,
                   std::unordered_map<int32_t, std::string>& bytes_of);

}  // namespace mcompress
