#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/base/text.h"
#include "mcompress/formats/json.h"
#include "parts.h"
#include "sentencepiece.h"
#include "unicode.h"

namespace mcompress {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// vocab.json and merges.txt do not say how text is cut, which other models do in other ways.
void check_is_gpt2(const std::string& folder, const std::string& type) {
  if ((!type.empty() && type != "gpt2" && type != "opt") || fs::exists(folder + "/added_tokens.json"))
    throw bad_data(
        "'{}' has vocab.json and merges.txt of a {} model, from which only the tokenizers of GPT-2 and OPT "
        "are made; "
        "save its tokenizer.json",
        folder, type.empty() ? "gpt2" : type);
}

// vocab.json and merges.txt, as GPT-2 came with, and OPT, which puts </s> before a text.
Tokenizer read_gpt2_files(const std::string& folder) {
  const std::string type = model_type_of(folder);
  check_is_gpt2(folder, type);
  const json tokens = read_json_file(folder + "/vocab.json");
  json root = {{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
               {"model", {{"type", "BPE"}, {"vocab", tokens}, {"merges", json::array()}}},
               {"added_tokens", json::array()}};
  const std::vector<std::string> special = type == "opt"
                                               ? std::vector<std::string>{"<s>", "<pad>", "</s>", "<unk>"}
                                               : std::vector<std::string>{"<|endoftext|>"};
  for (const std::string& token : special) {
    if (tokens.is_object() && tokens.contains(token))
      root["added_tokens"].push_back({{"id", tokens[token]}, {"content", token}, {"special", true}});
  }
  if (type == "opt" && tokens.is_object() && tokens.contains("</s>")) {
    root["post_processor"] = {
        {"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "</s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
        {"special_tokens", {{"</s>", {{"ids", {tokens["</s>"]}}}}}}};
  }
  const MappedFile file(folder + "/merges.txt");
  const std::string_view merges = text_of(file.bytes());
  check_utf8(merges);
  for (size_t begin = 0; begin < merges.size();) {
    const size_t end = std::min(merges.find('\n', begin), merges.size());
    const std::string_view line = merges.substr(begin, end - begin);
    begin = end + 1;
    if (!line.empty() && !line.starts_with("#version")) root["model"]["merges"].push_back(line);
  }
  return tokenizer_of_json(root, folder);
}

// Whether tokenizer_config.json asks for a special token around a text.
bool is_added(const json& config, const char* key, bool otherwise) {
  return config.is_object() && config.contains(key) && config[key].is_boolean() ? config[key].get<bool>()
                                                                                : otherwise;
}

// tokenizer.model, with the special tokens around a text that transformers adds for a Llama.
Tokenizer read_sentencepiece_folder(const std::string& folder) {
  const std::string path = folder + "/tokenizer.model", settings = folder + "/tokenizer_config.json";
  const MappedFile file(path);
  const std::string name = fmt::format("'{}'", path);
  SentencePieceModel model = read_sentencepiece(text_of(file.bytes()), name);
  json config;
  if (fs::exists(settings)) config = read_json_file(settings);
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const std::string& text = model.pieces[i].text;
    if (text == "<s>" && is_added(config, "add_bos_token", true)) model.before = {static_cast<int32_t>(i)};
    if (text == "</s>" && is_added(config, "add_eos_token", false)) model.after = {static_cast<int32_t>(i)};
  }
  return sentencepiece_tokenizer(model, name);
}

}  // namespace

bool has_tokenizer(const std::string& path) {
  return !fs::is_directory(path) || fs::exists(path + "/tokenizer.json") ||
         fs::exists(path + "/merges.txt") || fs::exists(path + "/tokenizer.model");
}

Tokenizer load_tokenizer(const std::string& path) {
  if (!fs::is_directory(path)) {
    const MappedFile file(path);
    return gguf_tokenizer(read_gguf(file.bytes(), path), path);
  }
  const std::string file = path + "/tokenizer.json", merges = path + "/merges.txt";
  if (fs::exists(file)) return tokenizer_of_json(read_json_file(file), file);
  if (fs::exists(path + "/tokenizer.model")) return read_sentencepiece_folder(path);
  if (fs::exists(merges)) return read_gpt2_files(path);
  throw error(Exit::kNoInput,
              "'{}' has no tokenizer: neither tokenizer.json, tokenizer.model nor vocab.json with merges.txt",
              path);
}

}  // namespace mcompress
