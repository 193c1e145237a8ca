#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mcompress {

// Looks strings up by views of them.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <typename Value>
using StringMap = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

// Byte-pair encoding of one piece of text: of the pairs of neighbouring tokens that can be merged the one
// with the lowest rank is, the leftmost of equals, until none can.
class Bpe {
 public:
  struct Merge {
    int32_t left, right, result;  // token ids; the rank is the place in the list
  };

  // `tokens`: bytes to id. `whole_first`: a piece that is a token is not merged (ignore_merges). A byte that
  // no token stands for is left out, as the tokenizers library does.
  Bpe(StringMap<int32_t> tokens, const std::vector<Merge>& merges, bool whole_first);

  // Appends the ids of a piece. O(n log n) in its bytes.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  const StringMap<int32_t>& tokens() const { return tokens_; }

 private:
  struct Target {
    int32_t rank, result;
  };
  const Target* find(int32_t left, int32_t right) const;
  void merge_few(std::vector<int32_t>& symbols) const;
  void merge_many(std::vector<int32_t>& symbols) const;

  StringMap<int32_t> tokens_;
  std::vector<int32_t> bytes_;  // id of each byte, or -1
  std::unordered_map<uint64_t, Target> merges_;
  bool whole_first_;
};

}  // namespace mcompress
