#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mcompress {

// Looks strings up by views of them.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <typename Value>
using StringMap = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

// What makes tokens of a piece of text, across whose ends no token reaches.
class PieceModel {
 public:
  virtual ~PieceModel() = default;

  // Appends the ids of a piece. Takes time in proportion to n log n of its bytes.
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids) const = 0;
};

// Longer tokens, of which no vocabulary is known, would take more time than a text has bytes.
constexpr size_t kLongestToken = 2048;

// What becomes of characters that no token stands for.
struct Unknown {
  int32_t id = -1;             // -1: they are left out
  bool fused = false;          // several in a row are one token
  std::vector<int32_t> bytes;  // by byte, the tokens that stand for them in its place, or -1; empty, or 256
  void append(std::string_view character, std::vector<int32_t>& ids) const;
};

}  // namespace mcompress
