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

}  // namespace

Tokenizer sentencepiece_tokenizer(const SentencePieceModel& model, const std::string& name) {
  StringMap<int32_t> ids;
  Unknown unknown;
  unknown.fused = true;
  std::vector<int32_t> bytes(256, -1);
  std::vector<AddedToken> found_raw, found_normalized;
  std::unordered_map<int32_t, std::string> bytes_of;
  std::vector<Unigram::Token> scored;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    const auto id = static_cast<int32_t>(i);
    bytes_of[id] = replace(std::string(kSpace), " ")(piece.text);
    if (!std::isfinite(piece.score)) throw bad_data("{}: piece '{}' has no finite score", name, piece.text);
    switch (piece.type) {
      case Type::kNormal:
        if (piece.text.empty() || !ids.emplace(piece.text, id).second)
          throw bad_data("{}: piece {}, '{}', is empty or there twice", name, i, piece.text);
        scored.push_back({piece.text, id, piece.score});
        break;
      case Type::kUserDefined: found_normalized.push_back({.id = id, .content = piece.text}); break;
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
      case Type::kUnused: break;
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
    pieces = std::make_unique<Unigram>(scored, std::move(unknown), Unigram::Precision::kSingle);
  } else {
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
