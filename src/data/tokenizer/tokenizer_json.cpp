#include <filesystem>
#include <limits>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/formats/json.h"
#include "parts.h"
#include "unicode.h"

namespace mcompress {

namespace {

using nlohmann::json;

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// Reads one tokenizer.json; every step that it does not know is refused by name.
class Reader {
 public:
  Reader(const json& root, const std::string& name) : root_(root), name_(name) {}

  Tokenizer read() {
    if (!root_.is_object() || !root_.contains("model")) throw fault("it has no 'model'");
    // "truncation" and "padding" are for batches, and of no concern here.
    read_normalizer(member(root_, "normalizer"));
    read_pre_tokenizer(member(root_, "pre_tokenizer"));
    if (!is_byte_level_) throw fault("only byte-level BPE is known, and its pre_tokenizer is no ByteLevel");
    read_post_processor(member(root_, "post_processor"));
    std::unordered_map<int32_t, std::string> bytes_of;
    Bpe model = byte_level_bpe(read_vocabulary(member(root_, "model")), name_, bytes_of);
    std::vector<AddedToken> raw, normalized;
    for (AddedToken& token : read_added_tokens()) {
      bytes_of[token.id] = token.content;
      (token.normalized ? normalized : raw).push_back(std::move(token));
    }
    return Tokenizer(std::make_unique<const Tokenizer::Parts>(
        Tokenizer::Parts{AddedTokens(std::move(raw)), AddedTokens(std::move(normalized)),
                         std::move(normalizers_), std::move(splits_), std::move(model), std::move(before_),
                         std::move(after_), std::move(bytes_of), "byte-level BPE"}));
  }

 private:
  Error fault(const std::string& what) const { return bad_data("{}: {}", name_, what); }

  static const json& member(const json& object, const char* key) {
    static const json kNull;
    return object.contains(key) ? object[key] : kNull;
  }
  std::string type_of(const json& step, const char* what) const { return text(step, "type", what); }
  std::string text(const json& object, const char* key, const char* what) const {
    const json* value = object.is_object() && object.contains(key) ? &object[key] : nullptr;
    if (value == nullptr || !value->is_string())
      throw fault(fmt::format("{} lacks the text '{}'", what, key));
    return value->get<std::string>();
  }
  bool flag(const json& object, const char* key, bool otherwise) const {
    const json& value = member(object, key);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) throw fault(fmt::format("'{}' is not true or false", key));
    return value.get<bool>();
  }
  int32_t id(const json& value, const std::string& token) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > std::numeric_limits<int32_t>::max())
      throw fault(fmt::format("the id of token '{}' is not a number from 0 to 2^31 - 1", token));
    return value.get<int32_t>();
  }
  const json& list(const json& object, const char* key, const char* what) const {
    const json& value = member(object, key);
    if (!value.is_array()) throw fault(fmt::format("{} lacks the list '{}'", what, key));
    return value;
  }

  void read_normalizer(const json& step) {
    if (step.is_null()) return;
    const std::string type = type_of(step, "the normalizer");
    if (type == "Sequence") {
      for (const json& part : list(step, "normalizers", "the normalizer")) read_normalizer(part);
    } else if (type == "NFC") {
      normalizers_.emplace_back(compose);
    } else {
      throw fault(fmt::format("normalizer '{}' is not known; known are NFC and Sequence", type));
    }
  }

  void read_pre_tokenizer(const json& step) {
    constexpr const char* kWhat = "the pre_tokenizer";
    if (step.is_null()) return;
    const std::string type = type_of(step, kWhat);
    if (is_byte_level_) throw fault(fmt::format("pre_tokenizer '{}' comes after ByteLevel", type));
    if (type == "Sequence") {
      for (const json& part : list(step, "pretokenizers", kWhat)) read_pre_tokenizer(part);
    } else if (type == "ByteLevel") {
      is_byte_level_ = true;
      const bool prefix = flag(step, "add_prefix_space", true), pattern = flag(step, "use_regex", true);
      if (prefix && !pattern)
        throw fault("ByteLevel with add_prefix_space and without use_regex is not known");
      if (pattern) splits_.push_back({Split::kGpt2, prefix});
    } else if (type == "Digits") {
      splits_.push_back({flag(step, "individual_digits", false) ? Split::kDigits : Split::kDigitRuns});
    } else if (type == "Split") {
      splits_.push_back({read_split(step)});
    } else {
      throw fault(fmt::format(
          "pre_tokenizer '{}' is not known; known are ByteLevel, Digits, Split and Sequence", type));
    }
  }

  Split read_split(const json& step) const {
    const std::string pattern = text(member(step, "pattern"), "Regex", "the pattern of a Split");
    const Split* split = split_of_pattern(pattern);
    if (split == nullptr)
      throw fault(
          fmt::format("the pattern of a Split is not known: those of GPT-2, Llama 3 and Qwen 2 are, and "
                      "not '{}'",
                      pattern));
    // The patterns match all of a text, so that these two leave the same pieces.
    const std::string behavior = text(step, "behavior", "a Split");
    const bool invert = flag(step, "invert", false);
    if (!(behavior == "Isolated" && !invert) && !(behavior == "Removed" && invert))
      throw fault(fmt::format("behavior '{}' of a Split is not known; Isolated is", behavior));
    return *split;
  }

  void read_post_processor(const json& step) {
    constexpr const char* kWhat = "the post_processor";
    if (step.is_null()) return;
    const std::string type = type_of(step, kWhat);
    if (type == "Sequence") {
      for (const json& part : list(step, "processors", kWhat)) read_post_processor(part);
    } else if (type == "TemplateProcessing") {
      read_template(step);
    } else if (type == "RobertaProcessing" || type == "BertProcessing") {
      for (const auto& [key, ids] : {std::pair("cls", &before_), std::pair("sep", &after_)}) {
        const json& token = list(step, key, kWhat);
        if (token.size() != 2) throw fault(fmt::format("'{}' is not a token and its id", key));
        ids->push_back(id(token[1], key));
      }
    } else if (type != "ByteLevel") {  // which changes offsets only
      throw fault(fmt::format("post_processor '{}' is not known", type));
    }
  }

  void read_template(const json& step) {
    constexpr const char* kWhat = "the post_processor";
    std::vector<int32_t>* ids = &before_;
    int texts = 0;
    for (const json& piece : list(step, "single", kWhat)) {
      if (piece.is_object() && piece.contains("Sequence")) {
        if (text(piece["Sequence"], "id", kWhat) != "A" || ++texts > 1)
          throw fault("its template is not around one text $A");
        ids = &after_;
        continue;
      }
      const std::string token = text(member(piece, "SpecialToken"), "id", kWhat);
      for (const json& value : list(member(member(step, "special_tokens"), token.c_str()), "ids", kWhat))
        ids->push_back(id(value, token));
    }
    if (texts != 1) throw fault("its template is not around one text $A");
  }

  ByteLevelVocabulary read_vocabulary(const json& model) const {
    const std::string type = model.is_object() && !model.contains("type") && model.contains("merges")
                                 ? "BPE"  // files before 2021 leave it out
                                 : type_of(model, "the model");
    if (type != "BPE") throw fault(fmt::format("model '{}' is not known; BPE is", type));
    const json& dropout = member(model, "dropout");
    if (!dropout.is_null() && dropout != 0) throw fault("its BPE has a dropout, which makes ids random");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const json& value = member(model, key);
      if (!value.is_null() && value != json("")) throw fault(fmt::format("BPE with '{}' is not known", key));
    }
    if (flag(model, "byte_fallback", false)) throw fault("BPE that is byte-level has no byte_fallback");
    ByteLevelVocabulary vocabulary;
    vocabulary.whole_first = flag(model, "ignore_merges", false);
    const json& tokens = member(model, "vocab");
    if (!tokens.is_object()) throw fault("the model lacks the object 'vocab'");
    for (const auto& [token, value] : tokens.items()) vocabulary.tokens.emplace_back(token, id(value, token));
    for (const json& merge : list(model, "merges", "the model"))
      vocabulary.merges.push_back(read_merge(merge));
    return vocabulary;
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
    throw fault(fmt::format("merge {} is not two tokens", merge.dump()));
  }

  std::vector<AddedToken> read_added_tokens() const {
    std::vector<AddedToken> tokens;
    const json& all = member(root_, "added_tokens");
    if (all.is_null()) return tokens;
    for (const json& entry : list(root_, "added_tokens", "it")) {
      AddedToken token;
      token.content = text(entry, "content", "an added token");
      token.id = id(member(entry, "id"), token.content);
      token.single_word = flag(entry, "single_word", false);
      token.lstrip = flag(entry, "lstrip", false);
      token.rstrip = flag(entry, "rstrip", false);
      token.normalized = flag(entry, "normalized", !flag(entry, "special", false));
      if (token.normalized) {
        for (const auto& normalize : normalizers_) token.content = normalize(token.content);
      }
      tokens.push_back(std::move(token));
    }
    return tokens;
  }

  const json& root_;
  const std::string& name_;
  std::vector<std::function<std::string(std::string_view)>> normalizers_;
  std::vector<SplitStep> splits_;
  std::vector<int32_t> before_, after_;
  bool is_byte_level_ = false;
};

// vocab.json and merges.txt do not say how text is cut, which other models do in other ways.
void check_is_gpt2(const std::string& folder) {
  const std::string config = folder + "/config.json";
  std::string type = "gpt2";
  if (std::filesystem::exists(config)) {
    const json root = parse_json(text_of(MappedFile(config)), fmt::format("'{}'", config));
    if (root.is_object() && root.contains("model_type") && root["model_type"].is_string())
      type = root["model_type"].get<std::string>();
  }
  if (type != "gpt2" || std::filesystem::exists(folder + "/added_tokens.json"))
    throw bad_data(
        "'{}' has vocab.json and merges.txt of a {} model, from which only GPT-2's tokenizer is made; save "
        "its tokenizer.json",
        folder, type);
}

// vocab.json and merges.txt, as GPT-2 came with.
Tokenizer read_gpt2_files(std::string_view vocabulary, std::string_view merges, const std::string& name) {
  const json tokens = parse_json(vocabulary, name + "/vocab.json");
  json root = {{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
               {"model", {{"type", "BPE"}, {"vocab", tokens}, {"merges", json::array()}}},
               {"added_tokens", json::array()}};
  constexpr const char* kEnd = "<|endoftext|>";
  if (tokens.is_object() && tokens.contains(kEnd))
    root["added_tokens"].push_back({{"id", tokens[kEnd]}, {"content", kEnd}, {"special", true}});
  for (size_t begin = 0; begin < merges.size();) {
    const size_t end = std::min(merges.find('\n', begin), merges.size());
    const std::string_view line = merges.substr(begin, end - begin);
    begin = end + 1;
    if (!line.empty() && !line.starts_with("#version")) root["model"]["merges"].push_back(line);
  }
  return Reader(root, name).read();
}

}  // namespace

Tokenizer read_tokenizer_json(std::string_view text, const std::string& name) {
  return Reader(parse_json(text, name), name).read();
}

bool has_tokenizer(const std::string& path) {
  namespace fs = std::filesystem;
  return !fs::is_directory(path) || fs::exists(path + "/tokenizer.json") || fs::exists(path + "/merges.txt");
}

Tokenizer load_tokenizer(const std::string& path) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(path)) {
    const MappedFile file(path);
    return gguf_tokenizer(read_gguf(file.bytes(), path), path);
  }
  const std::string file = path + "/tokenizer.json", merges = path + "/merges.txt";
  if (fs::exists(file)) return read_tokenizer_json(text_of(MappedFile(file)), file);
  if (fs::exists(merges)) {
    check_is_gpt2(path);
    const MappedFile vocabulary(path + "/vocab.json"), pairs(merges);
    check_utf8(text_of(pairs));
    return read_gpt2_files(text_of(vocabulary), text_of(pairs), path);
  }
  throw error(Exit::kNoInput, "'{}' has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt",
              path);
}

}  // namespace mcompress
