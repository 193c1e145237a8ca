#include <algorithm>
#include <filesystem>
#include <optional>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/base/text.h"
#include "mcompress/formats/json.h"
#include "parts.h"
#include "sentencepiece.h"

namespace mcompress {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// Reads a tokenizer.json as it streams by: the type of the model, the size of its vocabulary, and whether a
// pre-tokenizer is byte-level.
class Summarizer : public nlohmann::json_sax<json> {
 public:
  std::string model;
  bool is_byte_level = false;
  int64_t tokens = 0;

  bool null() override { return value(); }
  bool boolean(bool) override { return value(); }
  bool number_integer(number_integer_t) override { return value(); }
  bool number_unsigned(number_unsigned_t) override { return value(); }
  bool number_float(number_float_t, const string_t&) override { return value(); }
  bool binary(binary_t&) override { return value(); }
  bool string(string_t& text) override {
    if (in_model_ && depth_ == 2 && key_ == "type") model = text;
    if (in_pre_tokenizer_ && key_ == "type" && text == "ByteLevel") is_byte_level = true;
    return value();
  }
  bool key(string_t& text) override {
    if (depth_ == 1) {
      in_model_ = text == "model";
      in_pre_tokenizer_ = text == "pre_tokenizer";
    }
    if (depth_ == 2) in_vocabulary_ = in_model_ && text == "vocab";
    if (depth_ == 2 && in_model_ && text == "merges" && model.empty()) model = "BPE";  // of older files
    key_ = text;
    return true;
  }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  // A token is a number in an object, or a pair in a list.
  bool value() {
    tokens += in_vocabulary_ && depth_ == 3 ? 1 : 0;
    return true;
  }
  bool open() {
    value();
    ++depth_;
    return depth_ < 64;
  }
  bool close() {
    --depth_;
    if (depth_ <= 2) in_vocabulary_ = false;
    return true;
  }

  int depth_ = 0;
  bool in_model_ = false, in_pre_tokenizer_ = false, in_vocabulary_ = false;
  string_t key_;
};

TokenizerSummary summarize_json(const std::string& path) {
  const MappedFile file(path);
  Summarizer found;
  if (!json::sax_parse(text_of(file.bytes()), &found))
    parse_json(text_of(file.bytes()), fmt::format("'{}'", path));  // says what is wrong
  const std::string kind = found.model == "BPE" ? (found.is_byte_level ? kByteLevelBpe : kSentencePieceBpe)
                           : found.model == "Unigram" ? kSentencePieceUnigram
                                                      : found.model;
  return {kind, found.tokens};
}

TokenizerSummary summarize_gguf(const std::string& path) {
  const MappedFile file(path);
  const GgufFile content = read_gguf(file.bytes(), path);
  TokenizerSummary summary;
  if (const auto* model = find_value<std::string>(content, "tokenizer.ggml.model"))
    summary.kind = *model == "gpt2" ? kByteLevelBpe : *model == "llama" ? kSentencePieceBpe : *model;
  if (const auto* tokens = find_value<std::vector<std::string>>(content, "tokenizer.ggml.tokens"))
    summary.tokens = static_cast<int64_t>(tokens->size());
  return summary;
}

}  // namespace

TokenizerSummary summarize_tokenizer(const std::string& path) {
  if (!fs::is_directory(path)) return summarize_gguf(path);
  if (fs::exists(path + "/tokenizer.json")) return summarize_json(path + "/tokenizer.json");
  const std::string model = path + "/tokenizer.model";
  if (!fs::exists(model)) {
    const json vocabulary = read_json_file(path + "/vocab.json");
    return {kByteLevelBpe, static_cast<int64_t>(vocabulary.size())};
  }
  const MappedFile file(model);
  const SentencePieceModel pieces = read_sentencepiece(text_of(file.bytes()), fmt::format("'{}'", model));
  return {pieces.is_unigram ? kSentencePieceUnigram : kSentencePieceBpe,
          static_cast<int64_t>(pieces.pieces.size())};
}

}  // namespace mcompress
