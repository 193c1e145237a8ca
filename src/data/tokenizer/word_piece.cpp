#include "word_piece.h"

#include <algorithm>
#include <utility>

namespace mcompress {

namespace {

bool starts_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U; }

// The beginning of a text, of at most so many bytes and no part of a character.
std::string_view whole_characters(std::string_view text, size_t most) {
  if (text.size() <= most) return text;
  while (most > 0 && !starts_character(text[most])) --most;
  return text.substr(0, most);
}

}  // namespace

WordPiece::WordPiece(StringMap<int32_t> tokens, std::string continuation, int32_t unknown,
                     size_t most_characters)
    : tokens_(std::move(tokens)),
      continuation_(std::move(continuation)),
      unknown_(unknown),
      most_characters_(most_characters) {
  for (const auto& [token, id] : tokens_) longest_ = std::max(longest_, token.size());
}

void WordPiece::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  const auto characters = std::count_if(piece.begin(), piece.end(), starts_character);
  std::vector<int32_t> found;
  bool known = static_cast<size_t>(characters) <= most_characters_;
  for (size_t begin = 0; known && begin < piece.size();) {
    std::string candidate = begin > 0 ? continuation_ : "";
    const size_t prefix = candidate.size();
    candidate += whole_characters(piece.substr(begin), longest_);
    auto token = tokens_.find(candidate);
    while (token == tokens_.end() && candidate.size() > prefix) {
      while (candidate.size() > prefix && !starts_character(candidate.back())) candidate.pop_back();
      if (candidate.size() > prefix) candidate.pop_back();
      if (candidate.size() > prefix) token = tokens_.find(candidate);
    }
    known = token != tokens_.end() && candidate.size() > prefix;
    if (!known) break;
    found.push_back(token->second);
    begin += candidate.size() - prefix;
  }
  if (!known) found = {unknown_};
  ids.insert(ids.end(), found.begin(), found.end());
}

}  // namespace mcompress
