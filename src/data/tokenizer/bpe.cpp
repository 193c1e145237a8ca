#include "bpe.h"

#include <algorithm>
#include <limits>
#include <queue>

#include "unicode.h"

namespace mcompress {

namespace {

uint64_t key_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32U | static_cast<uint32_t>(right);
}

}  // namespace

void Unknown::append(std::string_view character, std::vector<int32_t>& ids) const {
  const auto token_of = [&](char byte) { return bytes[static_cast<unsigned char>(byte)]; };
  const bool falls_back = !bytes.empty() && std::all_of(character.begin(), character.end(),
                                                        [&](char byte) { return token_of(byte) >= 0; });
  if (falls_back) {
    for (const char byte : character) ids.push_back(token_of(byte));
  } else if (id >= 0 && !(fused && !ids.empty() && ids.back() == id)) {
    ids.push_back(id);
  }
}

Bpe::Bpe(StringMap<int32_t> tokens, const std::vector<Merge>& merges, Start start, Unknown unknown,
         bool whole_first)
    : tokens_(std::move(tokens)), start_(start), unknown_(std::move(unknown)), whole_first_(whole_first) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = tokens_.find(std::string(1, static_cast<char>(byte)));
    bytes_.push_back(found == tokens_.end() ? -1 : found->second);
  }
  merges_.reserve(merges.size());
  for (const Merge& merge : merges) {
    // Of a pair that is listed twice the last counts, as in the tokenizers library.
    merges_.insert_or_assign(key_of(merge.left, merge.right), Target{merge.rank, merge.result});
  }
}

const Bpe::Target* Bpe::find(int32_t left, int32_t right) const {
  const auto found = merges_.find(key_of(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

// For words: looks at all pairs before each merge.
void Bpe::merge_few(std::vector<int32_t>& symbols) const {
  std::vector<Target> pairs;  // of each symbol with its right neighbour
  constexpr Target kNone = {std::numeric_limits<int32_t>::max(), -1};
  const auto pair_at = [&](size_t i) {
    const Target* target = i + 1 < symbols.size() ? find(symbols[i], symbols[i + 1]) : nullptr;
    return target == nullptr ? kNone : *target;
  };
  for (size_t i = 0; i < symbols.size(); ++i) pairs.push_back(pair_at(i));
  while (true) {
    size_t best = 0;
    for (size_t i = 1; i < pairs.size(); ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs.empty() || pairs[best].result < 0) return;
    symbols[best] = pairs[best].result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    pairs.erase(pairs.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    pairs[best] = pair_at(best);
    if (best > 0) pairs[best - 1] = pair_at(best - 1);
  }
}

// For pieces of any length: a heap of the pairs, of which those that a merge has changed since are passed
// over.
void Bpe::merge_many(std::vector<int32_t>& symbols) const {
  struct Pair {
    int32_t rank;
    size_t left, right;     // places of the two symbols
    int32_t first, second;  // what they were
    int32_t result;
    bool operator<(const Pair& other) const {  // the top of the heap is the lowest rank, then the leftmost
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  constexpr size_t kNone = std::numeric_limits<size_t>::max();
  const size_t count = symbols.size();
  std::vector<size_t> previous(count), next(count);
  std::priority_queue<Pair> heap;
  const auto push = [&](size_t left, size_t right) {
    if (left == kNone || right == kNone) return;
    const Target* target = find(symbols[left], symbols[right]);
    if (target != nullptr)
      heap.push({target->rank, left, right, symbols[left], symbols[right], target->result});
  };
  for (size_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kNone : i - 1;
    next[i] = i + 1 == count ? kNone : i + 1;
  }
  for (size_t i = 0; i + 1 < count; ++i) push(i, i + 1);
  constexpr int32_t kGone = -1;
  while (!heap.empty()) {
    const Pair pair = heap.top();
    heap.pop();
    const bool current = symbols[pair.left] == pair.first && symbols[pair.right] == pair.second &&
                         next[pair.left] == pair.right;
    if (!current) continue;
    symbols[pair.left] = pair.result;
    symbols[pair.right] = kGone;
    next[pair.left] = next[pair.right];
    if (next[pair.left] != kNone) previous[next[pair.left]] = pair.left;
    push(previous[pair.left], pair.left);
    push(pair.left, next[pair.left]);
  }
  std::erase(symbols, kGone);
}

std::vector<int32_t> Bpe::start(std::string_view piece) const {
  std::vector<int32_t> symbols;
  symbols.reserve(piece.size());
  for (size_t at = 0; at < piece.size();) {
    const size_t bytes = start_ == Start::kBytes ? 1 : character_at(piece, at).bytes;
    const std::string_view part = piece.substr(at, bytes);
    const auto found = bytes == 1 ? tokens_.end() : tokens_.find(part);
    const int32_t id = bytes == 1               ? bytes_[static_cast<unsigned char>(piece[at])]
                       : found == tokens_.end() ? -1
                                                : found->second;
    id < 0 ? unknown_.append(part, symbols) : symbols.push_back(id);
    at += bytes;
  }
  return symbols;
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (whole_first_) {
    const auto whole = tokens_.find(piece);
    if (whole != tokens_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  std::vector<int32_t> symbols = start(piece);
  constexpr size_t kFew = 48;
  symbols.size() <= kFew ? merge_few(symbols) : merge_many(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

}  // namespace mcompress
