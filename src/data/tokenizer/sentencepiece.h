#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mcompress/data/tokenizer.h"

namespace mcompress {

// A model of the SentencePiece library (sentencepiece_model.proto), or what a GGUF file keeps of one.
struct SentencePieceModel {
  enum class Type : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  struct Piece {
    std::string text;  // with U+2581 for a space
    float score = 0;
    Type type = Type::kNormal;
  };
  std::vector<Piece> pieces;  // by id
  bool is_unigram = false;    // else byte-pair encoding, whose scores rank merges
  bool byte_fallback = false;
  std::string character_map;  // what normalizes characters; may be empty
  struct Spaces {
    bool add_dummy_prefix = true;  // a space before the text
    bool remove_extra = false;     // at both ends, and all but one inside
  } spaces;
  std::vector<int32_t> before, after;
};

// Reads a tokenizer.model. Throws Error(65) for a malformed file and for kinds of models that are not known.
SentencePieceModel read_sentencepiece(std::string_view file, const std::string& name);

std::optional<unsigned char> byte_of(const std::string& piece);  // of "<0x0A>"

// Throws Error(65) where pieces contradict each other.
Tokenizer sentencepiece_tokenizer(const SentencePieceModel& model, const std::string& name);

}  // namespace mcompress
