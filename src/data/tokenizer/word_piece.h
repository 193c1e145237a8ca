#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "piece_model.h"

namespace mcompress {

// WordPiece as BERT has it: the longest token that a word begins with, then the longest continuation, and so
// on; a word that cannot be cut so, or has too many characters, is unknown as a whole.
class WordPiece : public PieceModel {
 public:
  // `continuation`: what tokens inside a word begin with, "##".
  WordPiece(StringMap<int32_t> tokens, std::string continuation, int32_t unknown, size_t most_characters);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  StringMap<int32_t> tokens_;
  std::string continuation_;
  int32_t unknown_;
  size_t most_characters_, longest_ = 0;
};

}  // namespace mcompress
