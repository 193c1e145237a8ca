#include <cstring>
#include <limits>

#include "mcompress/base/error.h"
#include "sentencepiece.h"
#include "unicode.h"

namespace mcompress {

namespace {

// The fields of a protocol buffer message (protobuf.dev/programming-guides/encoding), in turn.
class Fields {
 public:
  Fields(std::string_view bytes, const std::string& name) : rest_(bytes), name_(name) {}

  uint64_t number = 0;    // of the field
  uint64_t value = 0;     // of a varint
  float real = 0;         // of a 32-bit field
  std::string_view text;  // of a text, of bytes, or of a message

  bool next() {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    number = key >> 3U;
    switch (key & 7U) {
      case 0: value = varint(); break;
      case 1: take(8); break;
      case 2: text = take(varint()); break;
      case 5: std::memcpy(&real, take(sizeof(real)).data(), sizeof(real)); break;
      default: throw fault();
    }
    return true;
  }

 private:
  Error fault() const { return bad_data("{}: it is not a SentencePiece model, or damaged", name_); }
  std::string_view take(uint64_t bytes) {
    if (bytes > rest_.size()) throw fault();
    const std::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return taken;
  }
  uint64_t varint() {
    uint64_t result = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      result |= uint64_t{byte & 0x7FU} << shift;
      if ((byte & 0x80U) == 0) return result;
    }
    throw fault();
  }

  std::string_view rest_;
  const std::string& name_;
};

using Type = SentencePieceModel::Type;

SentencePieceModel::Piece read_piece(std::string_view bytes, const std::string& name) {
  SentencePieceModel::Piece piece;
  for (Fields fields(bytes, name); fields.next();) {
    if (fields.number == 1) piece.text = fields.text;
    if (fields.number == 2) piece.score = fields.real;
    if (fields.number == 3) {
      if (fields.value < 1 || fields.value > 6)
        throw bad_data("{}: a piece has the type {}, which is not known", name, fields.value);
      piece.type = static_cast<Type>(fields.value);
    }
  }
  check_utf8(piece.text);
  return piece;
}

void read_trainer(std::string_view bytes, const std::string& name, SentencePieceModel& model) {
  uint64_t type = 1;
  for (Fields fields(bytes, name); fields.next();) {
    if (fields.number == 3) type = fields.value;
    if (fields.number == 35) model.byte_fallback = fields.value != 0;
    if (fields.number == 24 && fields.value != 0)
      throw bad_data("{}: a model that treats white space as a suffix is not known", name);
  }
  if (type != 1 && type != 2)
    throw bad_data("{}: its model is of type {}; unigram (1) and BPE (2) are known", name, type);
  model.is_unigram = type == 1;
}

void read_normalizer(std::string_view bytes, const std::string& name, SentencePieceModel& model) {
  for (Fields fields(bytes, name); fields.next();) {
    if (fields.number == 2) model.character_map = fields.text;
    if (fields.number == 3) model.spaces.add_dummy_prefix = fields.value != 0;
    if (fields.number == 4) model.spaces.remove_extra = fields.value != 0;
    if (fields.number == 5 && fields.value == 0)
      throw bad_data("{}: a model that does not escape white space is not known", name);
  }
}

}  // namespace

SentencePieceModel read_sentencepiece(std::string_view file, const std::string& name) {
  SentencePieceModel model;
  model.is_unigram = true;
  model.spaces.remove_extra = true;
  for (Fields fields(file, name); fields.next();) {
    if (fields.number == 1) model.pieces.push_back(read_piece(fields.text, name));
    if (fields.number == 2) read_trainer(fields.text, name, model);
    if (fields.number == 3) read_normalizer(fields.text, name, model);
  }
  if (model.pieces.empty()) throw bad_data("{}: it has no pieces", name);
  return model;
}

}  // namespace mcompress
