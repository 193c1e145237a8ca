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

// Normalizer::Normalize of the library: characters by the map, then spaces.
std::string normalized(SentencePieceModel::Spaces spaces, const CharacterMap* map, std::string_view text) {
  const std::string mapped = map == nullptr ? std::string(text) : apply_map(*map, text);
  std::string result;
  bool after_space = spaces.remove_extra;
  for (const char byte : mapped) {
    const bool space = byte == ' ';
    if (space && after_space) continue;
    space ? void(result += kSpaceMark) : void(result += byte);
    after_space = space && spaces.remove_extra;
  }
  // At the end the library drops U+2581 that was in the text too.
  while (spaces.remove_extra && result.ends_with(kSpaceMark))
    result.resize(result.size() - kSpaceMark.size());
  if (!result.empty() && spaces.add_dummy_prefix) result.insert(0, kSpaceMark);
  return result;
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

// The pieces of a model by what is done with them.
struct SortedPieces {
  StringMap<int32_t> ids;  // of normal ones
  Unknown unknown;
  std::vector<AddedToken> in_raw_text, in_normalized_text;
  std::unordered_map<int32_t, std::string> bytes_of;
  std::vector<Unigram::Token> scored, user_defined;
  std::vector<const std::string*> unused;
};

SortedPieces sort_pieces(const SentencePieceModel& model, const std::string& name) {
  SortedPieces sorted;
  sorted.unknown.fused = true;
  std::vector<int32_t> bytes(256, -1);
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    const auto id = static_cast<int32_t>(i);
    sorted.bytes_of[id] = with_spaces(piece.text);
    if (!std::isfinite(piece.score)) throw bad_data("{}: piece '{}' has no finite score", name, piece.text);
    check_length(piece.text, name);
    switch (piece.type) {
      case Type::kNormal:
        if (piece.text.empty() || !sorted.ids.emplace(piece.text, id).second)
          throw bad_data("{}: piece {}, '{}', is empty or there twice", name, i, piece.text);
        sorted.scored.push_back({piece.text, id, piece.score});
        break;
      case Type::kUserDefined:
        // To a unigram model they are pieces of a score that the others hardly reach.
        model.is_unigram ? sorted.user_defined.push_back({piece.text, id, 0})
                         : sorted.in_normalized_text.push_back({.id = id, .content = piece.text});
        break;
      case Type::kControl: sorted.in_raw_text.push_back({.id = id, .content = piece.text}); break;
      case Type::kUnknown:
        sorted.unknown.id = id;
        sorted.in_raw_text.push_back({.id = id, .content = piece.text});
        break;
      case Type::kByte: {
        const std::optional<unsigned char> byte = byte_of(piece.text);
        if (!byte) throw bad_data("{}: piece '{}' is none of a byte", name, piece.text);
        bytes[*byte] = id;
        sorted.bytes_of[id] = std::string(1, static_cast<char>(*byte));
        break;
      }
      case Type::kUnused: sorted.unused.push_back(&piece.text); break;
    }
  }
  if (model.byte_fallback) {
    if (std::find(bytes.begin(), bytes.end(), -1) != bytes.end())
      throw bad_data("{}: it falls back to bytes and has not a piece of each", name);
    sorted.unknown.bytes = std::move(bytes);
  }
  return sorted;
}

std::unique_ptr<const PieceModel> make_unigram(SortedPieces& sorted) {
  const auto by_score = [](const Unigram::Token& a, const Unigram::Token& b) { return a.score < b.score; };
  const auto best = std::max_element(sorted.scored.begin(), sorted.scored.end(), by_score);
  const double most = best == sorted.scored.end() ? 0 : best->score;
  for (Unigram::Token& token : sorted.user_defined) {
    token.score = static_cast<float>(static_cast<double>(token.text.size()) * most - 0.1);
    sorted.scored.push_back(std::move(token));
  }
  return std::make_unique<Unigram>(sorted.scored, std::move(sorted.unknown), Unigram::Precision::kSingle);
}

std::unique_ptr<const PieceModel> make_bpe(const SentencePieceModel& model, SortedPieces& sorted,
                                           const std::string& name) {
  for (const std::string* text : sorted.unused) check_unused(*text, sorted.ids, name);
  const std::vector<Bpe::Merge> merges = merges_of(model.pieces, sorted.ids);
  return std::make_unique<Bpe>(std::move(sorted.ids), merges, Bpe::Start::kCharacters,
                               std::move(sorted.unknown), false);
}

}  // namespace

std::optional<unsigned char> byte_of(const std::string& text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text.back() != '>') return std::nullopt;
  char* end = nullptr;
  const long value = std::strtol(text.c_str() + 1, &end, 16);
  return *end == '>' && end == text.c_str() + 5 ? std::optional(static_cast<unsigned char>(value))
                                                : std::nullopt;
}

Tokenizer sentencepiece_tokenizer(const SentencePieceModel& model, const std::string& name) {
  SortedPieces sorted = sort_pieces(model, name);
  std::shared_ptr<const CharacterMap> map;
  if (!model.character_map.empty()) map = std::make_shared<const CharacterMap>(model.character_map, name);
  auto pieces = model.is_unigram ? make_unigram(sorted) : make_bpe(model, sorted, name);
  return Tokenizer(std::make_unique<const Tokenizer::Parts>(
      Tokenizer::Parts{.in_raw_text = AddedTokens(std::move(sorted.in_raw_text)),
                       .in_normalized_text = AddedTokens(std::move(sorted.in_normalized_text)),
                       .normalizers = {[spaces = model.spaces, map](std::string_view text) {
                         return normalized(spaces, map.get(), text);
                       }},
                       .splits = {},
                       .model = std::move(pieces),
                       .before = model.before,
                       .after = model.after,
                       .bytes_of = std::move(sorted.bytes_of),
                       .kind = model.is_unigram ? kSentencePieceUnigram : kSentencePieceBpe}));
}

}  // namespace mcompress
