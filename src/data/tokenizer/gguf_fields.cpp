#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/data/tokenizer.h"
#include "mcompress/formats/json.h"

namespace mcompress {

namespace {

using nlohmann::json;

// Types of tokens (llama.h).
enum TokenType : int32_t { kNormal = 1, kControl = 3, kUser = 4, kUnused = 5 };

struct NamedSplit {
  const char *expression, *name;
};
constexpr std::array<NamedSplit, 2> kSplits = {
    {{R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
      "llama-bpe"},
     {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
      "qwen2"}}};

// What llama.cpp calls the steps that cut a text (tokenizer.ggml.pre).
std::string pre_name(const json& pre, const std::string& path) {
  std::vector<json> steps;
  if (pre.value("type", "") == "Sequence") {
    for (const json& step : pre["pretokenizers"]) steps.push_back(step);
  } else {
    steps.push_back(pre);
  }
  const auto type = [&](size_t i) { return i < steps.size() ? steps[i].value("type", "") : std::string(); };
  const size_t last = steps.size() - 1;
  if (type(last) == "ByteLevel") {
    const bool splits = steps[last].value("use_regex", true);
    if (steps.size() == 1 && splits) return "gpt-2";
    if (steps.size() == 2 && splits && type(0) == "Digits" && steps[0].value("individual_digits", false))
      return "smollm";
    if (steps.size() == 2 && !splits && type(0) == "Split" && steps[0]["pattern"].contains("Regex")) {
      for (const NamedSplit& known : kSplits) {
        if (steps[0]["pattern"]["Regex"] == known.expression) return known.name;
      }
    }
  }
  throw bad_data(
      "'{}': llama.cpp has no name for its pre-tokenizer; known are those of gpt-2, smollm, llama 3 and qwen "
      "2",
      path);
}

}  // namespace

std::vector<std::pair<std::string, GgufField>> gguf_tokenizer_fields(const std::string& folder,
                                                                     int64_t vocabulary) {
  const std::string path = folder + "/tokenizer.json";
  if (!std::filesystem::exists(path))
    throw bad_data("'{}' has no tokenizer.json, of which a GGUF file's tokenizer is made", folder);
  const json tokenizer = read_json_file(path);
  const json& model = tokenizer["model"];
  if (model.value("type", "") != "BPE" || model.value("byte_fallback", false))
    throw bad_data("'{}': only byte-level BPE can be written into a GGUF file yet", path);
  std::vector<std::string> tokens(static_cast<size_t>(vocabulary));
  std::vector<int32_t> types(tokens.size(), kUnused);
  const auto set = [&](int64_t id, const std::string& text, int32_t type) {
    if (id < 0 || id >= vocabulary)
      throw bad_data("'{}': token id {} is outside the model's vocabulary of {}", path, id, vocabulary);
    tokens[static_cast<size_t>(id)] = text;
    types[static_cast<size_t>(id)] = type;
  };
  for (const auto& [text, id] : model["vocab"].items()) set(id.get<int64_t>(), text, kNormal);
  for (const json& added : tokenizer.value("added_tokens", json::array()))
    set(added["id"].get<int64_t>(), added["content"].get<std::string>(),
        added.value("special", false) ? kControl : kUser);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == kUnused) tokens[i] = "[PAD" + std::to_string(i) + "]";
  }
  std::vector<std::string> merges;
  for (const json& merge : model["merges"]) {
    if (merge.is_string()) {
      merges.push_back(merge.get<std::string>());
    } else {
      merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    }
  }
  std::vector<std::pair<std::string, GgufField>> fields = {
      {"tokenizer.ggml.model", std::string("gpt2")},
      {"tokenizer.ggml.pre", pre_name(tokenizer["pre_tokenizer"], path)},
      {"tokenizer.ggml.tokens", tokens},
      {"tokenizer.ggml.token_type", types},
      {"tokenizer.ggml.merges", merges}};
  const auto id_of = [&](const std::string& text) -> std::optional<uint32_t> {
    const auto found = std::find(tokens.begin(), tokens.end(), text);
    if (found == tokens.end()) return std::nullopt;
    return static_cast<uint32_t>(found - tokens.begin());
  };
  const std::string settings_path = folder + "/tokenizer_config.json";
  const json settings =
      std::filesystem::exists(settings_path) ? read_json_file(settings_path) : json::object();
  const std::array<std::pair<const char*, const char*>, 4> kSpecial = {{{"bos_token", "bos_token_id"},
                                                                        {"eos_token", "eos_token_id"},
                                                                        {"unk_token", "unknown_token_id"},
                                                                        {"pad_token", "padding_token_id"}}};
  for (const auto& [name, key] : kSpecial) {
    const json given = settings.value(name, json());
    const json text = given.is_object() ? given.value("content", json()) : given;
    if (!text.is_string()) continue;
    if (const auto id = id_of(text.get<std::string>()))
      fields.emplace_back(std::string("tokenizer.ggml.") + key, *id);
  }
  fields.emplace_back("tokenizer.ggml.add_bos_token", settings.value("add_bos_token", json(false)) == true);
  const json chat = settings.value("chat_template", json());
  if (chat.is_string()) fields.emplace_back("tokenizer.chat_template", chat.get<std::string>());
  return fields;
}

}  // namespace mcompress
