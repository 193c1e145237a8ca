#include "sentencepiece.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>

#include "bpe.h"
#include "mcompress/base/error.h"
#include "normalizer.h"
#include "parts.h"
#include "unicode.h"
#include "unigram.h"

namespace mcompress {

namespace {

using Type = SentencePieceModel::Type;
using Piece = SentencePieceModel::Piece;

constexpr std::string_view kSpace = "\u2581";

// Normalizer::Normalize of the library: characters by the map, then spaces.
std::string normalized(SentencePieceModel::Spaces spaces, const CharacterMap* map, std::string_view text) {
  const std::string mapped = map == nullptr ? std::string(text) : apply_map(*map, text);
  std::string result;
  bool after_space = spaces.remove_extra;
  for (const char byte : mapped) {
    const bool space = byte == ' ';
    if (space && after_space) continue;
    space ? void(result += kSpace) : void(result += byte);
    after_space = space && spaces.remove_extra;
  }
  // At the end the library drops U+2581 that was in the text too.
  while (spaces.remove_extra && result.ends_with(kSpace)) result.resize(result.size() - kSpace.size());
  if (!result.empty() && spaces.add_dummy_prefix) result.insert(0, kSpace);
  return result;
}

// The byte of "<0x0A>".
std::optional<unsigned char> byte_of(const std::string& text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text.back() != '>') return std::nullopt;
  char* end = nullptr;
  const long value = std::strtol(text.c_str() + 1, &end, 16);
  return *end == '>' && end == text.c_str() + 5 ? std::optional(static_cast<unsigned char>(value))
                                                : std::nullopt;
}

// Two pieces merge to a third that is both after each other; the higher its score, the earlier.
std::vector<Bpe::Merge> merges_of(const std::vector<Piece>& pieces, const StringMap<int32_t>& ids) {
  std::vector<float> scores;
  for (const auto& [text, id] : ids) scores.push_back(pieces[static_cast<size_t>(id)].score);
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  std::vector<Bpe::Merge> merges;
  for (const auto& [text, id] : ids) {
    const float score = pieces[static_cast<size_t>(id)].score;
    const auto rank =
        std::lower_bound(scores.begin(), scores.end(), score, std::greater<>()) - scores.begin();
    for (size_t at = character_at(text, 0).bytes; at < text.size(); at += character_at(text, at).bytes) {
      const auto left = ids.find(std::string_view(text).substr(0, at)),
                 right = ids.find(std::string_view(text).substr(at));
      if (left != ids.end() && right != ids.end())
        merges.push_back({left->second, right->second, id, static_cast<int32_t>(rank)});
    }
  }
  return merges;
}

// The library merges through pieces that are not used and takes them apart again at the end.
void check_unused(const std::string& text, const StringMap<int32_t>& ids, const std::string& name) {
  for (size_t at = 1; at < text.size(); ++at) {
    if (ids.contains(std::string_view(text).substr(0, at)) && ids.contains(std::string_view(text).substr(at)))
      throw bad_data("{}: piece '{}' is not used and can be merged, which is not known", name, text);
  }
}

}  // namespace

Tokenizer sentencepiece_tokenizer(const SentencePieceModel& model, const std::string& name) {
  StringMap<int32_t> ids;
  Unknown unknown;
  unknown.fused = true;
  std::vector<int32_t> bytes(256, -1);
  std::vector<AddedToken> found_raw, found_normalized;
  std::unordered_map<int32_t, std::string> bytes_of;
  std::vector<Unigram::Token> scored, user_defined;
  std::vector<const std::string*> unused;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    const auto id = static_cast<int32_t>(i);
    bytes_of[id] = replace(std::string(kSpace), " ")(piece.text);
    if (!std::isfinite(piece.score)) throw bad_data("{}: piece '{}' has no finite score", name, piece.text);
    check_length(piece.text, name);
    switch (piece.type) {
      case Type::kNormal:
        if (piece.text.empty() || !ids.emplace(piece.text, id).second)
          throw bad_data("{}: piece {}, '{}', is empty or there twice", name, i, piece.text);
        scored.push_back({piece.text, id, piece.score});
        break;
      case Type::kUserDefined:
        // To a unigram model they are pieces of a score that the others hardly reach.
        model.is_unigram ? user_defined.push_back({piece.text, id, 0})
                         : found_normalized.push_back({.id = id, .content = piece.text});
        break;
      case Type::kControl: found_raw.push_back({.id = id, .content = piece.text}); break;
      case Type::kUnknown:
        unknown.id = id;
        found_raw.push_back({.id = id, .content = piece.text});
        break;
      case Type::kByte: {
        const std::optional<unsigned char> byte = byte_of(piece.text);
        if (!byte) throw bad_data("{}: piece '{}' is none of a byte", name, piece.text);
        bytes[*byte] = id;
        bytes_of[id] = std::string(1, static_cast<char>(*byte));
        break;
      }
      case Type::kUnused: unused.push_back(&piece.text); break;
    }
  }
  if (model.byte_fallback) {
    if (std::find(bytes.begin(), bytes.end(), -1) != bytes.end())
      throw bad_data("{}: it falls back to bytes and has not a piece of each", name);
    unknown.bytes = std::move(bytes);
  }
  std::shared_ptr<const CharacterMap> map;
  if (!model.character_map.empty()) map = std::make_shared<const CharacterMap>(model.character_map, name);
  std::unique_ptr<const PieceModel> pieces;
  if (model.is_unigram) {
    double most = 0;
    if (!scored.empty()) {
      most = std::max_element(scored.begin(), scored.end(), [](const auto& a, const auto& b) {
               return a.score < b.score;
             })->score;
    }
    for (Unigram::Token& token : user_defined) {
      token.score = static_cast<float>(static_cast<double>(token.text.size()) * most - 0.1);
      scored.push_back(std::move(token));
    }
    pieces = std::make_unique<Unigram>(scored, std::move(unknown), Unigram::Precision::kSingle);
  } else {
    for (const std::string* text : unused) check_unused(*text, ids, name);
    const std::vector<Bpe::Merge> merges = merges_of(model.pieces, ids);
    pieces =
        std::make_unique<Bpe>(std::move(ids), merges, Bpe::Start::kCharacters, std::move(unknown), false);
  }
  return Tokenizer(std::make_unique<const Tokenizer::Parts>(
      Tokenizer::Parts{.in_raw_text = AddedTokens(std::move(found_raw)),
                       .in_normalized_text = AddedTokens(std::move(found_normalized)),
                       .normalizers = {[spaces = model.spaces, map](std::string_view text) {
                         return normalized(spaces, map.get(), text);
                       }},
                       .splits = {},
                       .model = std::move(pieces),
                       .before = model.before,
                       .after = model.after,
                       .bytes_of = std::move(bytes_of),
                       .kind = model.is_unigram ? kSentencePieceUnigram : kSentencePieceBpe}));
}

}  // namespace mcompress
