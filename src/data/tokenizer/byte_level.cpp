#include <optional>

#include "mcompress/base/error.h"
#include "parts.h"
#include "unicode.h"

namespace mcompress {

namespace {

// The byte that a character of the alphabet stands for: printable Latin-1 for itself, the other 68 in order
// from U+0100 on (openai/gpt-2, bytes_to_unicode).
std::unordered_map<int32_t, char> alphabet() {
  std::unordered_map<int32_t, char> bytes;
  int32_t next = 0x100;
  for (int32_t byte = 0; byte < 0x100; ++byte) {
    const bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    bytes[itself ? byte : next++] = static_cast<char>(byte);
  }
  return bytes;
}

// Nothing where the token has characters that are none of the alphabet, so that no merge makes it.
std::optional<std::string> bytes_in(std::string_view token) {
  static const auto kAlphabet = alphabet();
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const Character character = character_at(token, at);
    const auto found = kAlphabet.find(character.code);
    if (found == kAlphabet.end()) return std::nullopt;
    bytes += found->second;
    at += character.bytes;
  }
  return bytes;
}

}  // namespace

std::vector<Bpe::Merge> ranked_merges(const TokenPairs& pairs,
                                      const std::function<std::optional<int32_t>(const std::string&)>& id_of,
                                      const std::string& name) {
  std::vector<Bpe::Merge> merges;
  merges.reserve(pairs.size());
  for (const auto& [left, right] : pairs) {
    const auto known_id = [&, &first = left, &second = right](const std::string& token) {
      const std::optional<int32_t> id = id_of(token);
      if (!id)
        throw bad_data("{}: merge {}, of '{}' and '{}', needs '{}', which is no token", name, merges.size(),
                       first, second, token);
      return *id;
    };
    const auto rank = static_cast<int32_t>(merges.size());
    merges.push_back({known_id(left), known_id(right), known_id(left + right), rank});
  }
  return merges;
}

std::unique_ptr<const Bpe> byte_level_bpe(const ByteLevelVocabulary& vocabulary, const std::string& name,
                                          std::unordered_map<int32_t, std::string>& bytes_of) {
  StringMap<int32_t> ids;
  ids.reserve(vocabulary.tokens.size());
  for (const auto& [token, id] : vocabulary.tokens) {
    const std::optional<std::string> bytes = bytes_in(token);
    if (!bytes_of.emplace(id, bytes.value_or(token)).second)
      throw bad_data("{}: tokens '{}' and '{}' have the same id {}", name, bytes_of.at(id), token, id);
    if (bytes) ids.emplace(*bytes, id);
  }
  const std::vector<Bpe::Merge> merges = ranked_merges(
      vocabulary.merges,
      [&](const std::string& token) -> std::optional<int32_t> {
        const std::optional<std::string> bytes = bytes_in(token);
        const auto found = bytes ? ids.find(*bytes) : ids.end();
        return found == ids.end() ? std::nullopt : std::optional(found->second);
      },
      name);
  // A byte that no token stands for is left out, as the tokenizers library does.
  return std::make_unique<Bpe>(std::move(ids), merges, Bpe::Start::kBytes, Unknown(), vocabulary.whole_first);
}

}  // namespace mcompress
