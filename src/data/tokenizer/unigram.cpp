#include "unigram.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "unicode.h"

namespace mcompress {

namespace {

uint64_t key_of(uint32_t node, char byte) { return uint64_t{node} << 8U | static_cast<unsigned char>(byte); }

}  // namespace

Unigram::Unigram(const std::vector<Token>& tokens, Unknown unknown, Precision precision)
    : nodes_(1), unknown_(std::move(unknown)), precision_(precision) {
  constexpr double kPenalty = 10;
  double lowest = std::numeric_limits<double>::max();
  for (const Token& token : tokens) {
    uint32_t node = 0;
    for (const char byte : token.text) {
      const auto [place, is_new] =
          children_.emplace(key_of(node, byte), static_cast<uint32_t>(nodes_.size()));
      if (is_new) nodes_.emplace_back();
      node = place->second;
    }
    if (node > 0) nodes_[node] = {token.id, token.score};
    lowest = std::min(lowest, token.score);
  }
  unknown_score_ = tokens.empty() ? 0 : lowest - kPenalty;
}

uint32_t Unigram::child(uint32_t node, char byte) const {
  const auto found = children_.find(key_of(node, byte));
  return found == children_.end() ? 0 : found->second;
}

void Unigram::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  // The best way to reach each place, and the token with which it ends.
  struct Best {
    double score = -std::numeric_limits<double>::infinity();
    size_t begin = 0;
    int32_t id = -1;
  };
  std::vector<Best> best(piece.size() + 1);
  best[0].score = 0;
  const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
    double sum = best[begin].score + score;
    if (precision_ == Precision::kSingle) sum = static_cast<float>(sum);
    if (sum > best[end].score) best[end] = {sum, begin, id};
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t bytes = character_at(piece, at).bytes;
    bool has_character = false;
    uint32_t node = 0;
    for (size_t end = at; end < piece.size();) {
      node = child(node, piece[end++]);
      if (node == 0) break;
      if (nodes_[node].id < 0) continue;
      offer(at, end, nodes_[node].score, nodes_[node].id);
      has_character = has_character || end - at == bytes;
    }
    if (!has_character) offer(at, at + bytes, unknown_score_, -1);
    at += bytes;
  }
  std::vector<size_t> ends;
  for (size_t at = piece.size(); at > 0; at = best[at].begin) ends.push_back(at);
  std::string unknown;  // characters in a row
  const auto end_unknown = [&] {
    std::vector<int32_t> alone;
    if (!unknown.empty()) unknown_.append(unknown, alone);
    ids.insert(ids.end(), alone.begin(), alone.end());
    unknown.clear();
  };
  std::reverse(ends.begin(), ends.end());
  for (const size_t end : ends) {
    const Best& token = best[end];
    if (token.id < 0) {
      unknown += piece.substr(token.begin, end - token.begin);
      continue;
    }
    end_unknown();
    ids.push_back(token.id);
  }
  end_unknown();
}

}  // namespace mcompress
