#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>

#include <nlohmann/json.hpp>

#include "gguf_values.h"
#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/data/tokenizer.h"
#include "mcompress/formats/json.h"

namespace mcompress {

namespace {

using nlohmann::json;

// What llama.cpp calls the steps that cut a text (tokenizer.ggml.pre).
std::string pre_name(const json& pre, const std::string& path) {
  std::vector<json> steps;
  if (pre.value("type", "") == "Sequence") {
    for (const json& step : pre.at("pretokenizers")) steps.push_back(step);
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
    if (steps.size() == 2 && !splits && type(0) == "Split" && steps[0].at("pattern").contains("Regex")) {
      for (const auto& [name, expression] : kNamedExpressions) {
        if (steps[0].at("pattern").at("Regex") == expression) return std::string(name);
      }
    }
  }
  throw bad_data(
      "'{}': llama.cpp has no name for its pre-tokenizer; known are those of gpt-2, smollm, llama 3 and qwen "
      "2",
      path);
}

// Whether a text gets a special token before it, or behind it.
enum class End { kBefore, kBehind };
bool has_special(const json& step, End end) {
  if (!step.is_object()) return false;
  if (step.value("type", "") == "Sequence") {
    const json& steps = step.at("processors");
    return std::any_of(steps.begin(), steps.end(), [&](const json& part) { return has_special(part, end); });
  }
  if (step.value("type", "") != "TemplateProcessing") return false;
  const json& single = step.at("single");
  return !single.empty() && (end == End::kBefore ? single.front() : single.back()).contains("SpecialToken");
}

// Of config.json, which may have several ends of a text.
std::optional<uint32_t> id_in_config(const std::string& folder, const char* key) {
  const json config = read_json_file(folder + "/config.json");
  json id = config.value(key, json());
  if (id.is_array() && !id.empty()) id = id.at(0);
  if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) return std::nullopt;
  return id.get<uint32_t>();
}

// llama.cpp composes characters for Qwen's tokenizers, and changes none for the others.
void check_normalizer(const json& normalizer, const std::string& path) {
  if (normalizer.is_null()) return;
  const std::string type = normalizer.value("type", "");
  const bool none = type == "Sequence" && normalizer.at("normalizers").empty();
  if (!none && type != "NFC")
    throw bad_data("'{}': llama.cpp has no normalizer '{}' for byte-level BPE", path, type);
}

using Fields = std::vector<std::pair<std::string, GgufField>>;

// Throws what the JSON library throws where something is not as it should be.
Fields fields_of(const std::string& folder, const std::string& path, int64_t vocabulary) {
  const json tokenizer = read_json_file(path);
  const json& model = tokenizer.at("model");
  if (model.value("type", "") != "BPE" || model.value("byte_fallback", false))
    throw bad_data("'{}': only byte-level BPE can be written into a GGUF file yet", path);
  check_normalizer(tokenizer.value("normalizer", json()), path);
  std::vector<std::string> tokens(static_cast<size_t>(vocabulary));
  std::vector<int32_t> types(tokens.size(), kUnusedToken);
  const auto set = [&](int64_t id, const std::string& text, int32_t type) {
    if (id < 0 || id >= vocabulary)
      throw bad_data("'{}': token id {} is outside the model's vocabulary of {}", path, id, vocabulary);
    tokens[static_cast<size_t>(id)] = text;
    types[static_cast<size_t>(id)] = type;
  };
  for (const auto& [text, id] : model.at("vocab").items()) set(id.get<int64_t>(), text, kNormalToken);
  for (const json& added : tokenizer.value("added_tokens", json::array()))
    set(added.at("id").get<int64_t>(), added.at("content").get<std::string>(),
        added.value("special", false) ? kControlToken : kUserToken);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == kUnusedToken) tokens[i] = "[PAD" + std::to_string(i) + "]";
  }
  std::vector<std::string> merges;
  for (const json& merge : model.at("merges")) {
    if (merge.is_string()) {
      merges.push_back(merge.get<std::string>());
    } else {
      merges.push_back(merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>());
    }
  }
  Fields fields = {{"tokenizer.ggml.model", std::string("gpt2")},
                   {"tokenizer.ggml.pre", pre_name(tokenizer.at("pre_tokenizer"), path)},
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
  struct Special {
    const char *token, *key, *config;  // in tokenizer_config.json, GGUF and config.json
  };
  constexpr std::array<Special, 4> kSpecial = {{{"bos_token", "bos_token_id", "bos_token_id"},
                                                {"eos_token", "eos_token_id", "eos_token_id"},
                                                {"unk_token", "unknown_token_id", "unk_token_id"},
                                                {"pad_token", "padding_token_id", "pad_token_id"}}};
  for (const Special& special : kSpecial) {
    const json given = settings.value(special.token, json());
    const json text = given.is_object() ? given.value("content", json()) : given;
    std::optional<uint32_t> id = text.is_string() ? id_of(text.get<std::string>()) : std::nullopt;
    if (!id) id = id_in_config(folder, special.config);
    if (id && *id < tokens.size()) fields.emplace_back(std::string("tokenizer.ggml.") + special.key, *id);
  }
  for (const auto& [key, end] : {std::pair("add_bos_token", End::kBefore), {"add_eos_token", End::kBehind}}) {
    const json adds = settings.value(key, json());
    fields.emplace_back(
        std::string("tokenizer.ggml.") + key,
        adds.is_boolean() ? adds.get<bool>() : has_special(tokenizer.value("post_processor", json()), end));
  }
  const std::string template_path = folder + "/chat_template.jinja";
  const json chat = settings.value("chat_template", json());
  if (chat.is_string()) {
    fields.emplace_back("tokenizer.chat_template", chat.get<std::string>());
  } else if (std::filesystem::exists(template_path)) {
    const MappedFile file(template_path);
    fields.emplace_back("tokenizer.chat_template",
                        std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()));
  }
  return fields;
}

}  // namespace

std::vector<std::pair<std::string, GgufField>> gguf_tokenizer_fields(const std::string& folder,
                                                                     int64_t vocabulary) {
  const std::string path = folder + "/tokenizer.json";
  if (!std::filesystem::exists(path))
    throw bad_data("'{}' has no tokenizer.json, of which a GGUF file's tokenizer is made", folder);
  try {
    return fields_of(folder, path, vocabulary);
  } catch (const json::exception&) {
    throw bad_data(
        "'{}', or a tokenizer_config.json or config.json beside it, has a value of another type than the "
        "tokenizers "
        "library writes there",
        path);
  }
}

}  // namespace mcompress
