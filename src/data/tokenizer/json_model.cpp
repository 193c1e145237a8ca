#include "json_model.h"

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "bpe.h"
#include "parts.h"
#include "unigram.h"
#include "word_piece.h"

namespace mcompress {

namespace {

using nlohmann::json;

class ModelReader {
 public:
  ModelReader(const JsonFields& fields, const json& model) : fields_(fields), model_(model) {}

  JsonModel read(bool is_byte_level) {
    const std::string type = model_.is_object() && !model_.contains("type") && model_.contains("merges")
                                 ? "BPE"  // files before 2021 leave it out
                                 : fields_.type_of(model_, "the model");
    if (type == "BPE") return is_byte_level ? read_byte_level() : read_character_bpe();
    if (is_byte_level)
      throw fields_.fault(fmt::format("model '{}' after a ByteLevel pre_tokenizer is not known", type));
    if (type == "Unigram") return read_unigram();
    if (type == "WordPiece") return read_word_piece();
    throw fields_.fault(fmt::format("model '{}' is not known; BPE, Unigram and WordPiece are", type));
  }

 private:
  JsonModel read_byte_level() {
    check_bpe();
    if (fields_.flag(model_, "byte_fallback", false))
      throw fields_.fault("BPE that is byte-level has no byte_fallback");
    ByteLevelVocabulary vocabulary;
    vocabulary.whole_first = fields_.flag(model_, "ignore_merges", false);
    vocabulary.tokens = read_tokens();
    vocabulary.merges = read_merges();
    JsonModel result;
    result.ids = {vocabulary.tokens.begin(), vocabulary.tokens.end()};
    result.pieces = byte_level_bpe(vocabulary, fields_.name(), result.bytes_of);
    result.kind = kByteLevelBpe;
    return result;
  }

  JsonModel read_character_bpe() {
    check_bpe();
    JsonModel result;
    StringMap<int32_t> ids = read_ids(result);
    Unknown unknown = read_unknown(ids, result);
    const std::vector<Bpe::Merge> merges = ranked_merges(
        read_merges(),
        [&](const std::string& token) {
          const auto found = ids.find(token);
          return found == ids.end() ? std::nullopt : std::optional(found->second);
        },
        fields_.name());
    result.pieces = std::make_unique<Bpe>(std::move(ids), merges, Bpe::Start::kCharacters, std::move(unknown),
                                          fields_.flag(model_, "ignore_merges", false));
    result.kind = kSentencePieceBpe;
    return result;
  }

  JsonModel read_unigram() {
    JsonModel result;
    StringMap<int32_t> ids;
    std::vector<Unigram::Token> tokens;
    for (const json& entry : fields_.list(model_, "vocab", "the model")) {
      if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number() ||
          !std::isfinite(entry[1].get<double>()))
        throw fields_.fault(fmt::format("token {} is not a text and its score", tokens.size()));
      const auto id = static_cast<int32_t>(tokens.size());
      tokens.push_back({entry[0].get<std::string>(), id, entry[1].get<double>()});
      check_length(tokens.back().text, fields_.name());
      ids.emplace(tokens.back().text, id);
      result.bytes_of[id] = with_spaces(tokens.back().text);
    }
    Unknown unknown;
    const json& id = JsonFields::member(model_, "unk_id");
    if (!id.is_null()) {
      unknown.id = fields_.id(id, "unk_id");
      if (static_cast<size_t>(unknown.id) >= tokens.size())
        throw fields_.fault(fmt::format("unk_id {} is none of its {} tokens", unknown.id, tokens.size()));
    }
    if (fields_.flag(model_, "byte_fallback", false)) unknown.bytes = byte_ids(ids, result);
    if (unknown.id < 0) throw fields_.fault("its Unigram model has no unk_id");
    result.pieces = std::make_unique<Unigram>(tokens, std::move(unknown), Unigram::Precision::kDouble);
    result.ids = std::move(ids);
    result.kind = kSentencePieceUnigram;
    return result;
  }

  JsonModel read_word_piece() {
    JsonModel result;
    StringMap<int32_t> ids = read_ids(result);
    const int32_t unknown = unknown_id(ids);
    const json& most = JsonFields::member(model_, "max_input_chars_per_word");
    constexpr int32_t kUsual = 100;
    result.pieces = std::make_unique<WordPiece>(
        std::move(ids), fields_.text(model_, "continuing_subword_prefix", "the model"), unknown,
        static_cast<size_t>(most.is_null() ? kUsual : fields_.id(most, "max_input_chars_per_word")));
    result.kind = "WordPiece";
    return result;
  }

  void check_bpe() const {
    const json& dropout = JsonFields::member(model_, "dropout");
    if (!dropout.is_null() && dropout != 0)
      throw fields_.fault("its BPE has a dropout, which makes ids random");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const json& value = JsonFields::member(model_, key);
      if (!value.is_null() && value != json(""))
        throw fields_.fault(fmt::format("BPE with '{}' is not known", key));
    }
  }

  std::vector<std::pair<std::string, int32_t>> read_tokens() const {
    const json& tokens = JsonFields::member(model_, "vocab");
    if (!tokens.is_object()) throw fields_.fault("the model lacks the object 'vocab'");
    std::vector<std::pair<std::string, int32_t>> result;
    for (const auto& [token, value] : tokens.items()) {
      check_length(token, fields_.name());
      result.emplace_back(token, fields_.id(value, token));
    }
    return result;
  }

  StringMap<int32_t> read_ids(JsonModel& result) const {
    StringMap<int32_t> ids;
    for (const auto& [token, id] : read_tokens()) {
      if (!result.bytes_of.emplace(id, with_spaces(token)).second)
        throw fields_.fault(
            fmt::format("tokens '{}' and '{}' have the same id {}", result.bytes_of.at(id), token, id));
      ids.emplace(token, id);
    }
    result.ids = ids;
    return ids;
  }

  int32_t unknown_id(const StringMap<int32_t>& ids) const {
    const std::string token = fields_.text(model_, "unk_token", "the model");
    const auto found = ids.find(token);
    if (found == ids.end()) throw fields_.fault(fmt::format("unk_token '{}' is no token", token));
    return found->second;
  }

  Unknown read_unknown(const StringMap<int32_t>& ids, JsonModel& result) const {
    Unknown unknown;
    unknown.fused = fields_.flag(model_, "fuse_unk", false);
    if (!JsonFields::member(model_, "unk_token").is_null()) unknown.id = unknown_id(ids);
    if (fields_.flag(model_, "byte_fallback", false)) unknown.bytes = byte_ids(ids, result);
    return unknown;
  }

  // Of <0x00> to <0xFF>, some of which may be missing: a tab is a token itself in Gemma.
  static std::vector<int32_t> byte_ids(const StringMap<int32_t>& ids, JsonModel& result) {
    std::vector<int32_t> bytes(256, -1);
    for (size_t byte = 0; byte < bytes.size(); ++byte) {
      const auto found = ids.find(fmt::format("<0x{:02X}>", byte));
      if (found == ids.end()) continue;
      bytes[byte] = found->second;
      result.bytes_of[found->second] = std::string(1, static_cast<char>(byte));
    }
    return bytes;
  }

  TokenPairs read_merges() const {
    TokenPairs merges;
    for (const json& merge : fields_.list(model_, "merges", "the model")) merges.push_back(read_merge(merge));
    return merges;
  }

  std::pair<std::string, std::string> read_merge(const json& merge) const {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
      return {merge[0].get<std::string>(), merge[1].get<std::string>()};
    if (merge.is_string()) {
      const auto both = merge.get<std::string>();
      const size_t space = both.find(' ');
      if (space != std::string::npos && both.find(' ', space + 1) == std::string::npos)
        return {both.substr(0, space), both.substr(space + 1)};
    }
    throw fields_.fault(fmt::format("merge {} is not two tokens", merge.dump()));
  }

  const JsonFields& fields_;
  const json& model_;
};

}  // namespace

JsonModel read_model(const JsonFields& fields, const json& model, bool is_byte_level) {
  return ModelReader(fields, model).read(is_byte_level);
}

}  // namespace mcompress
