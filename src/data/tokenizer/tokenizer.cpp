#include "mcompress/data/tokenizer.h"

#include <algorithm>

#include "mcompress/base/error.h"
#include "parts.h"
#include "unicode.h"

namespace mcompress {

std::string with_spaces(std::string_view token) { return replace(std::string(kSpaceMark), " ")(token); }

void check_length(std::string_view token, const std::string& name) {
  if (token.size() > kLongestToken)
    throw bad_data("{}: a token of {} bytes is longer than any that is known; at most {} are", name,
                   token.size(), kLongestToken);
}

std::string normalize(const std::vector<Normalizer>& steps, std::string_view text) {
  std::string result(text);
  for (const Normalizer& step : steps) {
    result = step(result);
    check_growth(result.size(), text.size());
  }
  return result;
}

namespace {

// Encodes texts, and remembers the ids of words, which come again and again.
class Encoder {
 public:
  explicit Encoder(const Tokenizer::Parts& parts) : parts_(parts) {}

  void add(std::string_view text) {
    bool at_start = true;
    for (const auto& part : parts_.in_raw_text.split(text)) {
      part.token == nullptr ? add_raw(part.text, at_start) : ids_.push_back(part.token->id);
      at_start = false;
    }
  }
  std::vector<int32_t> take() { return std::move(ids_); }

 private:
  void add_raw(std::string_view text, bool at_start) {
    if (parts_.normalizers.empty()) return add_normalized(text, at_start);
    const std::string normalized = normalize(parts_.normalizers, text);
    // Where the beginning is stripped, what is left does not begin the text.
    const bool stripped =
        text.starts_with(' ') && !normalized.starts_with(' ') && !normalized.starts_with(kSpaceMark);
    add_normalized(normalized, at_start && !stripped);
  }

  void add_normalized(std::string_view text, bool at_start) {
    for (const auto& part : parts_.in_normalized_text.split(text)) {
      part.token == nullptr ? split(part.text, at_start, 0) : ids_.push_back(part.token->id);
      at_start = false;
    }
  }

  void split(std::string_view text, bool at_start, size_t step) {
    if (text.empty()) return;
    if (step == parts_.splits.size()) return add_piece(text);
    // A piece begins where the text does, unless something before it was left out.
    bool is_first = at_start;
    const UsePiece use = [&](std::string_view piece) {
      const bool inside = piece.data() >= text.data() && piece.data() < text.data() + text.size();
      split(piece, is_first && (!inside || piece.data() == text.data()), step + 1);
      is_first = false;
    };
    parts_.splits[step](text, at_start, use);
  }

  void add_piece(std::string_view piece) {
    constexpr size_t kLongestWord = 64, kWords = size_t{1} << 17U;
    if (piece.size() > kLongestWord) return parts_.model->encode(piece, ids_);
    auto found = words_.find(piece);
    if (found == words_.end()) {
      if (words_.size() == kWords) words_.clear();
      std::vector<int32_t> ids;
      parts_.model->encode(piece, ids);
      found = words_.emplace(piece, std::move(ids)).first;
    }
    ids_.insert(ids_.end(), found->second.begin(), found->second.end());
  }

  const Tokenizer::Parts& parts_;
  std::vector<int32_t> ids_;
  StringMap<std::vector<int32_t>> words_;
};

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  check_utf8(text);
  Encoder encoder(*parts_);
  encoder.add(text);
  return encoder.take();
}

std::vector<int32_t> Tokenizer::encode_with_specials(std::string_view text) const {
  std::vector<int32_t> ids = encode(text);
  ids.insert(ids.begin(), parts_->before.begin(), parts_->before.end());
  ids.insert(ids.end(), parts_->after.begin(), parts_->after.end());
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (const int32_t id : ids) {
    const auto found = parts_->bytes_of.find(id);
    if (found == parts_->bytes_of.end()) throw bad_data("the tokenizer has no token {}", id);
    text += found->second;
  }
  return text;
}

int64_t Tokenizer::size() const {
  int32_t largest = -1;
  for (const auto& [id, bytes] : parts_->bytes_of) largest = std::max(largest, id);
  return int64_t{largest} + 1;
}

std::string Tokenizer::kind() const { return parts_->kind; }

}  // namespace mcompress
