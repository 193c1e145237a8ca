#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/formats/json.h"
#include "parts.h"
#include "sentencepiece.h"
#include "unicode.h"

namespace mcompress {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

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
  return tokenizer_of_json(root, name);
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
  SentencePieceModel model = read_sentencepiece(text_of(file), name);
  json config;
  if (fs::exists(settings)) config = parse_json(text_of(MappedFile(settings)), fmt::format("'{}'", settings));
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
  if (fs::exists(file)) return read_tokenizer_json(text_of(MappedFile(file)), file);
  if (fs::exists(path + "/tokenizer.model")) return read_sentencepiece_folder(path);
  if (fs::exists(merges)) {
    check_is_gpt2(path);
    const MappedFile vocabulary(path + "/vocab.json"), pairs(merges);
    check_utf8(text_of(pairs));
    return read_gpt2_files(text_of(vocabulary), text_of(pairs), path);
  }
  throw error(Exit::kNoInput,
              "'{}' has no tokenizer: neither tokenizer.json, tokenizer.model nor vocab.json with merges.txt",
              path);
}

}  // namespace mcompress
