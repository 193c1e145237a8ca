#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "gguf_values.h"
#include "mcompress/base/error.h"
#include "parts.h"
#include "sentencepiece.h"
#include "unicode.h"

namespace mcompress {

namespace {

// What `tokenizer.ggml.pre` stands for (llama-vocab.cpp). Qwen's own tokenizer composes characters first.
struct NamedSplits {
  std::string_view name;
  std::vector<Split> splits;
  bool whole_first = false, composes = false;
};

const NamedSplits& splits_named(const std::string& name, const std::string& file) {
  static const std::array<NamedSplits, 4> kKnown = {{{"gpt-2", {Split::kGpt2}},
                                                     {"smollm", {Split::kDigits, Split::kGpt2}},
                                                     {"llama-bpe", {Split::kLlama3}, true},
                                                     {"qwen2", {Split::kQwen2}, false, true}}};
  for (const NamedSplits& known : kKnown) {
    if (known.name == name) return known;
  }
  throw bad_data("{}: tokenizer.ggml.pre '{}' is not known; known are gpt-2, smollm, llama-bpe and qwen2",
                 file, name);
}

// The token that is put at an end of a text; none where the file does not ask for it.
std::vector<int32_t> special(const GgufFile& file, const char* asked, const char* id, size_t tokens,
                             const std::string& name) {
  if (!asks_for(file, asked)) return {};
  const auto token = integer_or(file, id, -1);
  if (token < 0) return {};
  if (token >= static_cast<int64_t>(tokens))
    throw bad_data("{}: {} {} is none of its {} tokens", name, id, token, tokens);
  return {static_cast<int32_t>(token)};
}

Tokenizer sentencepiece_of(const GgufFile& file, const std::string& name) {
  const auto& tokens = value_of<std::vector<std::string>>(file, "tokens", name);
  const auto& types = value_of<std::vector<int64_t>>(file, "token_type", name);
  const auto& scores = value_of<std::vector<double>>(file, "scores", name);
  if (types.size() != tokens.size() || scores.size() != tokens.size())
    throw bad_data("{}: it has {} tokens, {} token types and {} scores", name, tokens.size(), types.size(),
                   scores.size());
  SentencePieceModel model;
  for (size_t i = 0; i < tokens.size(); ++i) {
    check_utf8(tokens[i]);
    if (types[i] < 1 || types[i] > 6)
      throw bad_data("{}: token {} has type {}, which is not known", name, i, types[i]);
    model.pieces.push_back(
        {tokens[i], static_cast<float>(scores[i]), static_cast<SentencePieceModel::Type>(types[i])});
  }
  model.byte_fallback = std::find(types.begin(), types.end(), 6) != types.end();
  model.spaces.add_dummy_prefix = integer_or(file, "add_space_prefix", 1) != 0;
  model.before = special(file, "add_bos_token", "bos_token_id", tokens.size(), name);
  model.after = special(file, "add_eos_token", "eos_token_id", tokens.size(), name);
  return sentencepiece_tokenizer(model, name);
}

Tokenizer byte_level_of(const GgufFile& file, const std::string& name) {
  const NamedSplits& pre = splits_named(value_of<std::string>(file, "pre", name), name);
  const auto& tokens = value_of<std::vector<std::string>>(file, "tokens", name);
  const auto& types = value_of<std::vector<int64_t>>(file, "token_type", name);
  if (types.size() != tokens.size())
    throw bad_data("{}: it has {} tokens and {} token types", name, tokens.size(), types.size());
  ByteLevelVocabulary vocabulary;
  vocabulary.whole_first = pre.whole_first;
  std::vector<AddedToken> added;
  for (size_t i = 0; i < tokens.size(); ++i) {
    check_utf8(tokens[i]);
    check_length(tokens[i], name);
    const auto id = static_cast<int32_t>(i);
    if (types[i] != kUnusedToken) vocabulary.tokens.emplace_back(tokens[i], id);
    if (types[i] == kControlToken || types[i] == kUserToken)
      added.push_back({.id = id, .content = tokens[i]});
  }
  for (const std::string& merge : value_of<std::vector<std::string>>(file, "merges", name)) {
    check_utf8(merge);
    const size_t space = merge.find(' ');
    if (space == std::string::npos) throw bad_data("{}: merge '{}' is not two tokens", name, merge);
    vocabulary.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  std::vector<int32_t> before = special(file, "add_bos_token", "bos_token_id", tokens.size(), name);
  std::vector<int32_t> after = special(file, "add_eos_token", "eos_token_id", tokens.size(), name);
  std::unordered_map<int32_t, std::string> bytes_of;
  auto bpe = byte_level_bpe(vocabulary, name, bytes_of);
  for (const AddedToken& token : added) bytes_of[token.id] = token.content;
  std::vector<Normalizer> normalizers;
  if (pre.composes)
    normalizers.emplace_back([](std::string_view text) { return normal_form(text, NormalForm::kNfc); });
  std::vector<SplitStep> splits;
  for (const Split split : pre.splits) splits.push_back(split_by_pattern(split));
  return Tokenizer(std::make_unique<const Tokenizer::Parts>(Tokenizer::Parts{
      AddedTokens(std::move(added)), AddedTokens({}), std::move(normalizers), std::move(splits),
      std::move(bpe), std::move(before), std::move(after), std::move(bytes_of), kByteLevelBpe}));
}

}  // namespace

Tokenizer gguf_tokenizer(const GgufFile& file, const std::string& path) {
  const std::string name = fmt::format("tokenizer of '{}'", path);
  const auto& model = value_of<std::string>(file, "model", name);
  if (model == "gpt2") return byte_level_of(file, name);
  if (model == "llama") return sentencepiece_of(file, name);
  throw bad_data(
      "{}: model '{}' is not known; gpt2, which is byte-level BPE, and llama, which is SentencePiece, are",
      name, model);
}

}  // namespace mcompress
