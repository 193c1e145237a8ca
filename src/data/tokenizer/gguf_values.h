#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "mcompress/base/error.h"
#include "mcompress/formats/gguf.h"

namespace mcompress {

// What the metadata of a GGUF file says of its tokenizer.

// Types of tokens (llama.h).
enum GgufTokenType : int32_t {
  kNormalToken = 1,
  kUnknownToken,
  kControlToken,
  kUserToken,
  kUnusedToken,
  kByteToken
};

// The expression by which tokenizer.json cuts a text where llama.cpp names one (tokenizer.ggml.pre); the
// other names are of expressions that the tokenizers library has built in.
constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kNamedExpressions = {
    {{"llama-bpe",
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
     {"qwen2",
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}}};
inline std::string_view expression_named(std::string_view pre) {
  for (const auto& [name, expression] : kNamedExpressions) {
    if (name == pre) return expression;
  }
  return {};
}

template <typename Value>
const Value& value_of(const GgufFile& file, const std::string& key, const std::string& name) {
  const auto* value = find_value<Value>(file, "tokenizer.ggml." + key);
  if (value == nullptr)
    throw bad_data(
        "{}: the metadata has no tokenizer.ggml.{}, or of another type; pass a file with its tokenizer", name,
        key);
  return *value;
}

// A number or a flag, which is 0 or 1.
inline int64_t integer_or(const GgufFile& file, const std::string& key, int64_t otherwise) {
  const auto* value = find_value<int64_t>(file, "tokenizer.ggml." + key);
  return value == nullptr ? otherwise : *value;
}

// Whether a text gets the token before or behind it that "add_bos_token" or "add_eos_token" asks for.
// llama.cpp puts a BOS before texts of SentencePiece and Llama 3 where a file says nothing.
inline bool asks_for(const GgufFile& file, const std::string& key) {
  const auto is = [&](const char* of, const char* value) {
    const auto* text = find_value<std::string>(file, std::string("tokenizer.ggml.") + of);
    return text != nullptr && *text == value;
  };
  const bool by_default = key == "add_bos_token" && (is("model", "llama") || is("pre", "llama-bpe"));
  return integer_or(file, key, by_default ? 1 : 0) != 0;
}

}  // namespace mcompress
