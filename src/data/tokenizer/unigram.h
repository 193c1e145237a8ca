#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "piece_model.h"

namespace mcompress {

// The unigram language model (arXiv:1804.10959): of all ways to cut a piece into tokens the one whose scores
// add up to most.
class Unigram : public PieceModel {
 public:
  struct Token {
    std::string text;
    int32_t id;
    double score;
  };
  // SentencePiece adds scores in float32, the tokenizers library in float64.
  enum class Precision { kSingle, kDouble };

  // A character that no token stands for has the lowest score less 10; several in a row are one.
  Unigram(const std::vector<Token>& tokens, Unknown unknown, Precision precision);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  // A tree of the tokens' bytes.
  struct Node {
    int32_t id = -1;
    double score = 0;
  };
  uint32_t child(uint32_t node, char byte) const;  // 0: none

  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, uint32_t> children_;
  double unknown_score_ = 0;
  Unknown unknown_;
  Precision precision_;
};

}  // namespace mcompress
