#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "json_fields.h"
#include "piece_model.h"

namespace mcompress {

struct JsonModel {
  std::unique_ptr<const PieceModel> pieces;
  std::unordered_map<int32_t, std::string> bytes_of;  // what tokens stand for
  StringMap<int32_t> ids;                             // of tokens as the file spells them
  std::string kind;
};

// Reads the "model" of a tokenizer.json: BPE, Unigram or WordPiece. Throws Error(65) for others and for what
// contradicts itself.
JsonModel read_model(const JsonFields& fields, const nlohmann::json& model, bool is_byte_level);

}  // namespace mcompress
