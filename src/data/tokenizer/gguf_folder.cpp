#include <algorithm>
#include <array>
#include <string_view>
#include <unordered_map>

#include <nlohmann/json.hpp>

#include "gguf_values.h"
#include "mcompress/base/error.h"
#include "mcompress/data/tokenizer.h"
#include "parts.h"

namespace mcompress {

namespace {

using nlohmann::ordered_json;

ordered_json byte_level(bool splits) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", splits}};
}

// The steps that cut a text, of each tokenizer.ggml.pre that is read.
ordered_json pre_tokenizer(const std::string& pre) {
  if (pre == "gpt-2") return byte_level(true);
  const std::string_view expression = expression_named(pre);
  const ordered_json first = expression.empty()
                                 ? ordered_json{{"type", "Digits"}, {"individual_digits", true}}
                                 : ordered_json{{"type", "Split"},
                                                {"pattern", {{"Regex", expression}}},
                                                {"behavior", "Isolated"},
                                                {"invert", false}};
  return {{"type", "Sequence"},
          {"pretokenizers", ordered_json::array({first, byte_level(expression.empty())})}};
}

ordered_json added_token(int64_t id, const std::string& text, bool special, bool normalized) {
  return {{"id", id},        {"content", text},          {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", normalized}, {"special", special}};
}

// Puts tokens around a text.
ordered_json post_processor(const std::vector<std::string>& before, const std::vector<std::string>& after,
                            const std::map<std::string, int64_t>& ids) {
  ordered_json single = ordered_json::array(), tokens = ordered_json::object();
  const auto add = [&](const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      single.push_back({{"SpecialToken", {{"id", name}, {"type_id", 0}}}});
      tokens[name] = {{"id", name},
                      {"ids", ordered_json::array({ids.at(name)})},
                      {"tokens", ordered_json::array({name})}};
    }
  };
  add(before);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  add(after);
  ordered_json pair = single;
  for (ordered_json part : single) {
    auto& place = part.begin().value();
    place["type_id"] = 1;
    if (part.contains("Sequence")) place["id"] = "B";
    pair.push_back(part);
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", tokens}};
}

// What the tokens of a file and their order make: steps around the merges, and the merges.
struct Steps {
  ordered_json normalizer, pre_tokenizer, decoder, post_processor;  // the last where no token is put around
  ordered_json merges = ordered_json::array(), unknown;
  bool byte_fallback = false, whole_first = false;
};

Steps byte_level_steps(const GgufFile& file, const std::string& name) {
  const auto& pre = value_of<std::string>(file, "pre", name);
  Steps steps;
  if (pre == "qwen2") steps.normalizer = {{"type", "NFC"}};
  steps.pre_tokenizer = pre_tokenizer(pre);
  steps.decoder = steps.post_processor = byte_level(true);
  steps.whole_first = pre == "llama-bpe";
  for (const std::string& merge : value_of<std::vector<std::string>>(file, "merges", name)) {
    const size_t space = merge.find(' ');
    steps.merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  return steps;
}

// Any two pieces that are a third after each other merge, those of the highest score first.
ordered_json merges_of(const std::vector<std::string>& tokens, const std::vector<int64_t>& types,
                       const std::vector<double>& scores) {
  std::unordered_map<std::string, size_t> ids;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == kNormalToken) ids.emplace(tokens[i], i);
  }
  std::vector<std::array<size_t, 3>> merges;  // whole, left, right
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] != kNormalToken) continue;
    for (size_t at = 1; at < tokens[i].size(); ++at) {
      const auto left = ids.find(tokens[i].substr(0, at)), right = ids.find(tokens[i].substr(at));
      if (left != ids.end() && right != ids.end()) merges.push_back({i, left->second, right->second});
    }
  }
  std::sort(merges.begin(), merges.end(), [&](const auto& a, const auto& b) {
    return scores[a[0]] != scores[b[0]] ? scores[a[0]] > scores[b[0]] : a < b;
  });
  ordered_json list = ordered_json::array();
  for (const auto& [whole, left, right] : merges) list.push_back({tokens[left], tokens[right]});
  return list;
}

Steps sentencepiece_steps(const GgufFile& file, const std::string& name) {
  const auto& tokens = value_of<std::vector<std::string>>(file, "tokens", name);
  const auto& types = value_of<std::vector<int64_t>>(file, "token_type", name);
  const bool prefix = integer_or(file, "add_space_prefix", 1) != 0;
  const std::string mark(kSpaceMark);
  const ordered_json spaces = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}};
  Steps steps;
  steps.normalizer = spaces;
  if (prefix)
    steps.normalizer = {
        {"type", "Sequence"},
        {"normalizers", ordered_json::array({{{"type", "Prepend"}, {"prepend", mark}}, spaces})}};
  ordered_json decoders =
      ordered_json::array({{{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}},
                           {{"type", "ByteFallback"}},
                           {{"type", "Fuse"}}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  steps.decoder = {{"type", "Sequence"}, {"decoders", decoders}};
  steps.merges = merges_of(tokens, types, value_of<std::vector<double>>(file, "scores", name));
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == kUnknownToken) steps.unknown = tokens[i];
    steps.byte_fallback = steps.byte_fallback || types[i] == kByteToken;
    if (types[i] == kUserToken && prefix && tokens[i].find(mark) != std::string::npos)
      throw bad_data("{}: token '{}' with spaces of its own cannot be written into a tokenizer.json", name,
                     tokens[i]);
  }
  return steps;
}

}  // namespace

std::map<std::string, std::string> folder_tokenizer(const GgufFile& file, const std::string& path) {
  gguf_tokenizer(file, path);  // which says what is wrong with it
  const std::string name = fmt::format("tokenizer of '{}'", path);
  const bool byte_level_bpe = value_of<std::string>(file, "model", name) == "gpt2";
  const Steps steps = byte_level_bpe ? byte_level_steps(file, name) : sentencepiece_steps(file, name);
  const auto& tokens = value_of<std::vector<std::string>>(file, "tokens", name);
  const auto& types = value_of<std::vector<int64_t>>(file, "token_type", name);
  ordered_json vocabulary = ordered_json::object(), added = ordered_json::array();
  auto& entries = vocabulary.get_ref<ordered_json::object_t&>();
  std::map<std::string, int64_t> ids;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<int64_t>(i);
    if (types[i] == kUnusedToken) continue;
    if (!ids.emplace(tokens[i], id).second) throw bad_data("{}: token '{}' is there twice", name, tokens[i]);
    entries.emplace_back(tokens[i], id);  // by its name the object would look through all others
    const bool special = types[i] == kControlToken || types[i] == kUnknownToken;
    // Spaces are replaced by the time that such a one is looked for.
    const bool spaced = !byte_level_bpe && tokens[i].find(kSpaceMark) != std::string::npos;
    if (special || types[i] == kUserToken) added.push_back(added_token(id, tokens[i], special, spaced));
  }
  const auto token_of = [&](const char* key) -> std::string {
    const int64_t id = integer_or(file, key, -1);
    return id >= 0 && id < static_cast<int64_t>(tokens.size()) ? tokens[static_cast<size_t>(id)] : "";
  };
  const auto around = [&](const char* asked, const char* key) {
    std::vector<std::string> names;
    if (!asks_for(file, asked) || integer_or(file, key, -1) < 0) return names;
    names.push_back(token_of(key));
    if (!ids.contains(names[0])) throw bad_data("{}: {} is an unused token", name, key);
    return names;
  };
  const auto before = around("add_bos_token", "bos_token_id"),
             after = around("add_eos_token", "eos_token_id");
  const bool plain = before.empty() && after.empty();
  const ordered_json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", steps.normalizer},
      {"pre_tokenizer", steps.pre_tokenizer},
      {"post_processor", plain ? steps.post_processor : post_processor(before, after, ids)},
      {"decoder", steps.decoder},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", steps.unknown},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", !byte_level_bpe},
        {"byte_fallback", steps.byte_fallback},
        {"ignore_merges", steps.whole_first},
        {"vocab", vocabulary},
        {"merges", steps.merges}}}};
  ordered_json settings = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                           {"clean_up_tokenization_spaces", false}};
  for (const auto& [key, id] :
       std::array<std::pair<const char*, const char*>, 4>{{{"bos_token", "bos_token_id"},
                                                           {"eos_token", "eos_token_id"},
                                                           {"unk_token", "unknown_token_id"},
                                                           {"pad_token", "padding_token_id"}}}) {
    if (const std::string token = token_of(id); !token.empty()) settings[key] = token;
  }
  if (const auto* chat = find_value<std::string>(file, "tokenizer.chat_template"))
    settings["chat_template"] = *chat;
  const std::string text = tokenizer.dump(2) + "\n";
  read_tokenizer_json(text, name);  // which refuses what no reader would take
  constexpr auto kReplace = ordered_json::error_handler_t::replace;  // the template may be no UTF-8
  return {{"tokenizer.json", text}, {"tokenizer_config.json", settings.dump(2, ' ', false, kReplace) + "\n"}};
}

}  // namespace mcompress
