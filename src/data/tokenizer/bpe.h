#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "piece_model.h"

namespace mcompress {

// Byte-pair encoding: of the pairs of neighbouring tokens that can be merged the one with the lowest rank is,
// the leftmost of equals, until none can (arXiv:1508.07909).
class Bpe : public PieceModel {
 public:
  struct Merge {
    int32_t left, right, result;  // token ids
    int32_t rank;
  };
  enum class Start { kBytes, kCharacters };  // what is merged

  // `tokens`: bytes to id. `whole_first`: a piece that is a token is not merged (ignore_merges).
  Bpe(StringMap<int32_t> tokens, const std::vector<Merge>& merges, Start start, Unknown unknown,
      bool whole_first);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  struct Target {
    int32_t rank, result;
  };
  const Target* find(int32_t left, int32_t right) const;
  std::vector<int32_t> start(std::string_view piece) const;
  void merge_few(std::vector<int32_t>& symbols) const;
  void merge_many(std::vector<int32_t>& symbols) const;

  StringMap<int32_t> tokens_;
  std::vector<int32_t> bytes_;  // id of each byte, or -1
  std::unordered_map<uint64_t, Target> merges_;
  Start start_;
  Unknown unknown_;
  bool whole_first_;
};

}  // namespace mcompress
