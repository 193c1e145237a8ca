#include <array>
#include <string_view>
#include <utility>

#include "mcompress/base/error.h"
#include "parts.h"
#include "unicode.h"

namespace mcompress {

namespace {

// What `tokenizer.ggml.pre` stands for (llama-vocab.cpp). Qwen's own tokenizer composes characters first.
struct PreTokenizer {
  std::string_view name;
  std::vector<SplitStep> splits;
  bool whole_first = false, composes = false;
};

const PreTokenizer& pre_tokenizer_named(const std::string& name, const std::string& file) {
  static const std::array<PreTokenizer, 4> kKnown = {{{"gpt-2", {{Split::kGpt2}}},
                                                      {"smollm", {{Split::kDigits}, {Split::kGpt2}}},
                                                      {"llama-bpe", {{Split::kLlama3}}, true},
                                                      {"qwen2", {{Split::kQwen2}}, false, true}}};
  for (const PreTokenizer& known : kKnown) {
    if (known.name == name) return known;
  }
  throw bad_data("{}: tokenizer.ggml.pre '{}' is not known; known are gpt-2, smollm, llama-bpe and qwen2",
                 file, name);
}

template <typename Value>
const Value& value_of(const GgufFile& file, const std::string& key, const std::string& name) {
  const auto found = file.metadata.find("tokenizer.ggml." + key);
  const auto* value = found == file.metadata.end() ? nullptr : std::get_if<Value>(&found->second);
  if (value == nullptr)
    throw bad_data("{}: the metadata has no tokenizer.ggml.{}, or of another type", name, key);
  return *value;
}

}  // namespace

Tokenizer gguf_tokenizer(const GgufFile& file, const std::string& path) {
  const std::string name = fmt::format("tokenizer of '{}'", path);
  const auto& model = value_of<std::string>(file, "model", name);
  if (model != "gpt2")
    throw bad_data("{}: model '{}' is not known; gpt2 is, which is byte-level BPE", name, model);
  const PreTokenizer& pre = pre_tokenizer_named(value_of<std::string>(file, "pre", name), name);
  const auto& tokens = value_of<std::vector<std::string>>(file, "tokens", name);
  const auto& types = value_of<std::vector<int64_t>>(file, "token_type", name);
  if (types.size() != tokens.size())
    throw bad_data("{}: it has {} tokens and {} token types", name, tokens.size(), types.size());
  constexpr int64_t kControl = 3, kUser = 4, kUnused = 5;
  ByteLevelVocabulary vocabulary;
  vocabulary.whole_first = pre.whole_first;
  std::vector<AddedToken> added;
  for (size_t i = 0; i < tokens.size(); ++i) {
    check_utf8(tokens[i]);
    const auto id = static_cast<int32_t>(i);
    if (types[i] != kUnused) vocabulary.tokens.emplace_back(tokens[i], id);
    if (types[i] == kControl || types[i] == kUser) added.push_back({.id = id, .content = tokens[i]});
  }
  for (const std::string& merge : value_of<std::vector<std::string>>(file, "merges", name)) {
    check_utf8(merge);
    const size_t space = merge.find(' ');
    if (space == std::string::npos) throw bad_data("{}: merge '{}' is not two tokens", name, merge);
    vocabulary.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  std::unordered_map<int32_t, std::string> bytes_of;
  Bpe bpe = byte_level_bpe(vocabulary, name, bytes_of);
  for (const AddedToken& token : added) bytes_of[token.id] = token.content;
  std::vector<std::function<std::string(std::string_view)>> normalizers;
  if (pre.composes) normalizers.emplace_back(compose);
  return Tokenizer(std::make_unique<const Tokenizer::Parts>(Tokenizer::Parts{AddedTokens(std::move(added)),
                                                                             AddedTokens({}),
                                                                             std::move(normalizers),
                                                                             pre.splits,
                                                                             std::move(bpe),
                                                                             {},
                                                                             {},
                                                                             std::move(bytes_of),
                                                                             "byte-level BPE"}));
}

}  // namespace mcompress
