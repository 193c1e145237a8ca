#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "added_tokens.h"
#include "bpe.h"
#include "mcompress/data/tokenizer.h"
#include "normalizer.h"
#include "piece_model.h"
#include "split_step.h"

namespace mcompress {

// What tokenizers call themselves.
constexpr const char* kByteLevelBpe = "byte-level BPE";
constexpr const char* kSentencePieceBpe = "SentencePiece BPE";
constexpr const char* kSentencePieceUnigram = "SentencePiece unigram";

// The steps of a tokenizer in the order in which text passes through them.
struct Tokenizer::Parts {
  AddedTokens in_raw_text, in_normalized_text;
  std::vector<Normalizer> normalizers;
  std::vector<SplitStep> splits;
  std::unique_ptr<const PieceModel> model;
  std::vector<int32_t> before, after;  // special tokens around a single text
  std::unordered_map<int32_t, std::string> bytes_of;
  std::string kind;
};

// Throws Error(65) for a token longer than kLongestToken.
void check_length(std::string_view token, const std::string& name);

// The text behind all steps. Throws Error(65) where they make much more of it.
std::string normalize(const std::vector<Normalizer>& steps, std::string_view text);

// Pairs of tokens that are merged, by rank.
using TokenPairs = std::vector<std::pair<std::string, std::string>>;

// The merges of pairs. Throws Error(65) naming `name` for those of what is no token.
std::vector<Bpe::Merge> ranked_merges(const TokenPairs& pairs,
                                      const std::function<std::optional<int32_t>(const std::string&)>& id_of,
                                      const std::string& name);

// What SentencePiece writes for a space, and a token with spaces again.
constexpr std::string_view kSpaceMark = "\u2581";
std::string with_spaces(std::string_view token);

// What a byte-level vocabulary is read from, whatever file it lies in: tokens in the alphabet that byte-level
// BPE writes bytes in, and pairs of them by rank.
struct ByteLevelVocabulary {
  std::vector<std::pair<std::string, int32_t>> tokens;
  TokenPairs merges;
  bool whole_first = false;
};

// Bytes to id, and the model. Throws Error(65) naming `name` for ids that two tokens share, and for merges of
// what is no token.
std::unique_ptr<const Bpe> byte_level_bpe(const ByteLevelVocabulary& vocabulary, const std::string& name,
                                          std::unordered_map<int32_t, std::string>& bytes_of);

// Makes the tokenizer that a parsed tokenizer.json describes.
Tokenizer tokenizer_of_json(const nlohmann::json& root, const std::string& name);

}  // namespace mcompress
