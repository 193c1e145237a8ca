#include "added_tokens.h"

#include <algorithm>
#include <functional>

#include "unicode.h"

namespace mcompress {

namespace {

bool is_word_at(std::string_view text, size_t at) { return is_word(character_at(text, at).code); }

size_t start_of_character(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U) --at;
  return at;
}

bool is_space_at(std::string_view text, size_t at) {
  return class_of(character_at(text, at).code) == CharClass::kSpace;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), lengths_(256) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = tokens_[i].content;
    if (content.empty() || !by_content_.emplace(content, i).second) continue;
    std::vector<size_t>& lengths = lengths_[static_cast<unsigned char>(content[0])];
    if (std::find(lengths.begin(), lengths.end(), content.size()) == lengths.end())
      lengths.push_back(content.size());
  }
  for (auto& lengths : lengths_) std::sort(lengths.begin(), lengths.end(), std::greater<>());
}

const AddedToken* AddedTokens::match_at(std::string_view text, size_t at) const {
  for (const size_t length : lengths_[static_cast<unsigned char>(text[at])]) {
    if (length > text.size() - at) continue;
    const auto found = by_content_.find(text.substr(at, length));
    if (found != by_content_.end()) return &tokens_[found->second];
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
    const bool inside_word = (at > 0 && is_word_at(text, start_of_character(text, at))) ||
                             (end < text.size() && is_word_at(text, end));
    if (token->single_word && inside_word) {
      at = end;  // what it covers is looked at no more, as in the tokenizers library
      continue;
    }
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
