#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include <nlohmann/json.hpp>

#include "gguf_values.h"
#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/data/tokenizer.h"
#include "mcompress/formats/json.h"
#include "parts.h"
#include "sentencepiece.h"

namespace mcompress {

namespace {

using nlohmann::json;

// One step, those of a sequence, or none.
std::vector<json> steps_of(const json& step, const char* list) {
  if (step.is_null()) return {};
  if (step.value("type", "") != "Sequence") return {step};
  return step.at(list).get<std::vector<json>>();
}

// What llama.cpp calls the steps that cut a text (tokenizer.ggml.pre).
std::string pre_name(const json& pre, const std::string& path) {
  const std::vector<json> steps = steps_of(pre, "pretokenizers");
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

// Whether SentencePiece would put a space before a text, where the steps do with spaces what it does: U+2581
// is in their place. Nothing where they do anything else.
std::optional<bool> adds_space(const json& normalizer, const json& pre) {
  bool replaces = false, prepends = false;
  for (const json& step : steps_of(normalizer, "normalizers")) {
    const std::string type = step.value("type", "");
    const bool replace = type == "Replace" && step.at("pattern").value("String", "") == " " &&
                         step.value("content", "") == kSpaceMark;
    const bool prepend = type == "Prepend" && step.value("prepend", "") == kSpaceMark;
    if (!replace && !prepend) return std::nullopt;
    replaces = replaces || replace;
    prepends = prepends || prepend;
  }
  const std::string type = pre.is_null() ? "" : pre.value("type", "");
  // No space is left that it could cut at.
  const bool idle = type.empty() || (type == "Split" && pre.at("pattern").value("String", "") == " ");
  if (replaces && idle) return prepends;
  const bool marks =
      type == "Metaspace" && pre.value("replacement", "") == kSpaceMark && !pre.value("split", true);
  if (!marks || replaces || prepends) return std::nullopt;
  return pre.value("prepend_scheme", "always") != "never" && pre.value("add_prefix_space", true);
}

using Merges = std::vector<std::pair<std::string, std::string>>;

// Scores by which SentencePiece merges as the list says. It makes a token of any two that are it when they
// follow each other, so that all such pairs must be listed, those of a token together.
std::vector<float> scores_of(const Merges& merges, const std::vector<std::string>& tokens,
                             const std::vector<int32_t>& types, const std::string& path) {
  const auto refuse = [&](const std::string& token) {
    return bad_data("'{}': SentencePiece, as a GGUF file describes it, would make token '{}' by other merges",
                    path, token);
  };
  std::unordered_map<std::string, int> ranks;
  std::set<std::pair<std::string, std::string>> listed;
  const std::string* last = nullptr;
  std::string token;
  for (const auto& [left, right] : merges) {
    token = left + right;
    const bool again = last != nullptr && *last == token;
    const auto [entry, fresh] = ranks.emplace(token, static_cast<int>(ranks.size()) + 1);
    if (!again && !fresh) throw refuse(token);
    last = &entry->first;
    listed.emplace(left, right);
  }
  std::unordered_set<std::string> normal;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == kNormalToken) normal.insert(tokens[i]);
  }
  std::vector<float> scores(tokens.size(), 0);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] != kNormalToken) continue;
    for (size_t at = 1; at < tokens[i].size(); ++at) {
      const std::pair parts(tokens[i].substr(0, at), tokens[i].substr(at));
      const bool merges_them = normal.contains(parts.first) && normal.contains(parts.second);
      if (merges_them && !listed.contains(parts)) throw refuse(tokens[i]);
    }
    const auto rank = ranks.find(tokens[i]);
    scores[i] = -static_cast<float>(rank == ranks.end() ? ranks.size() + 1 : rank->second);
  }
  return scores;
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
  if (model.value("type", "") != "BPE")
    throw bad_data("'{}': only BPE can be written into a GGUF file yet, byte-level or with byte_fallback",
                   path);
  const bool pieces = model.value("byte_fallback", false);
  const json normalizer = tokenizer.value("normalizer", json()),
             pre = tokenizer.value("pre_tokenizer", json());
  const std::optional<bool> space = pieces ? adds_space(normalizer, pre) : std::nullopt;
  if (pieces && (!space || model.value("ignore_merges", false)))
    throw bad_data("'{}': SentencePiece, as a GGUF file describes it, has other steps before its merges",
                   path);
  if (!pieces) check_normalizer(normalizer, path);
  std::vector<std::string> tokens(static_cast<size_t>(vocabulary));
  std::vector<int32_t> types(tokens.size(), kUnusedToken);
  const auto set = [&](int64_t id, const std::string& text, int32_t type) {
    if (id < 0 || id >= vocabulary)
      throw bad_data("'{}': token id {} is outside the model's vocabulary of {}", path, id, vocabulary);
    tokens[static_cast<size_t>(id)] = text;
    types[static_cast<size_t>(id)] = type;
  };
  for (const auto& [text, id] : model.at("vocab").items())
    set(id.get<int64_t>(), text, pieces && byte_of(text) ? kByteToken : kNormalToken);
  const json unknown = model.value("unk_token", json());
  for (const json& added : tokenizer.value("added_tokens", json::array())) {
    const int32_t type = pieces && added.at("content") == unknown ? kUnknownToken
                         : added.value("special", false)          ? kControlToken
                                                                  : kUserToken;
    set(added.at("id").get<int64_t>(), added.at("content").get<std::string>(), type);
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == kUnusedToken) tokens[i] = "[PAD" + std::to_string(i) + "]";
  }
  Merges merges;
  for (const json& merge : model.at("merges")) {
    if (!merge.is_string()) {
      merges.emplace_back(merge.at(0).get<std::string>(), merge.at(1).get<std::string>());
      continue;
    }
    const auto text = merge.get<std::string>();
    const size_t between = text.find(' ');
    if (between == std::string::npos) throw bad_data("'{}': merge '{}' is not two tokens", path, text);
    merges.emplace_back(text.substr(0, between), text.substr(between + 1));
  }
  Fields fields = {{"tokenizer.ggml.model", std::string(pieces ? "llama" : "gpt2")},
                   {"tokenizer.ggml.pre", pieces ? "default" : pre_name(pre, path)},
                   {"tokenizer.ggml.tokens", tokens},
                   {"tokenizer.ggml.token_type", types}};
  if (pieces) {
    fields.emplace_back("tokenizer.ggml.scores", scores_of(merges, tokens, types, path));
    fields.emplace_back("tokenizer.ggml.add_space_prefix", *space);
  } else {
    std::vector<std::string> texts;
    for (const auto& [left, right] : merges) texts.push_back(left + " " + right);
    fields.emplace_back("tokenizer.ggml.merges", texts);
  }
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
