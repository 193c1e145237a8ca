#include "added_tokens.h"

#include <algorithm>

#include "unicode.h"

namespace mcompress {

namespace {

bool is_word(std::string_view text, size_t at) {
  const int32_t code = character_at(text, at).code;
  const CharClass kind = class_of(code);
  return code == '_' || kind == CharClass::kLetter || kind == CharClass::kNumber;
}

size_t start_of_character(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U) --at;
  return at;
}

bool is_space_at(std::string_view text, size_t at) {
  return class_of(character_at(text, at).code) == CharClass::kSpace;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), by_first_byte_(256) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (!tokens_[i].content.empty())
      by_first_byte_[static_cast<unsigned char>(tokens_[i].content[0])].push_back(i);
  }
  for (auto& places : by_first_byte_) {
    std::stable_sort(places.begin(), places.end(), [&](size_t a, size_t b) {
      return tokens_[a].content.size() > tokens_[b].content.size();
    });
  }
}

const AddedToken* AddedTokens::match_at(std::string_view text, size_t at) const {
  for (const size_t i : by_first_byte_[static_cast<unsigned char>(text[at])]) {
    const AddedToken& token = tokens_[i];
    if (!text.substr(at).starts_with(token.content)) continue;
    const size_t end = at + token.content.size();
    if (token.single_word && ((at > 0 && is_word(text, start_of_character(text, at))) ||
                              (end < text.size() && is_word(text, end))))
      continue;
    return &token;
  }
  return nullptr;
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text) const {
  std::vector<Part> parts;
  size_t begin = 0;  // of the text that is in no part yet
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = match_at(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t first = at, end = at + token->content.size();
    if (token->lstrip) {
      while (first > begin && is_space_at(text, start_of_character(text, first)))
        first = start_of_character(text, first);
    }
    if (token->rstrip) {
      while (end < text.size() && is_space_at(text, end)) end += character_at(text, end).bytes;
    }
    if (first > begin) parts.push_back({text.substr(begin, first - begin), nullptr});
    parts.push_back({text.substr(first, end - first), token});
    begin = at = end;
  }
  if (begin < text.size()) parts.push_back({text.substr(begin), nullptr});
  return parts;
}

}  // namespace mcompress
