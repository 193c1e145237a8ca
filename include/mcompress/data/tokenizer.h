#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mcompress/formats/gguf.h"
#include "mcompress/formats/gguf_write.h"

namespace mcompress {

// Turns text into the token ids that a language model was trained on, to the id as the library does that made
// the tokenizer; where a file asks for a step that is not known, it is refused, since text cut at other
// places would only look right. Can be used by several threads at once.
class Tokenizer {
 public:
  struct Parts;  // normalizer, pre-tokenizer, model, added tokens

  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  // Special tokens that are spelt in the text are found; none are added. Throws Error(65) at the first
  // invalid UTF-8.
  std::vector<int32_t> encode(std::string_view text) const;

  // The same with what the tokenizer puts around a single text, such as a BOS token.
  std::vector<int32_t> encode_with_specials(std::string_view text) const;

  // The bytes that the tokens stand for, special ones as they are spelt. Throws Error(65) for an unknown id.
  std::string decode(const std::vector<int32_t>& ids) const;

  int64_t size() const;      // one more than the largest id
  std::string kind() const;  // "byte-level BPE", "SentencePiece unigram", ...

 private:
  std::unique_ptr<const Parts> parts_;
};

// Reads a tokenizer.json of the tokenizers library. `name` is for messages. Throws Error(65) for a malformed
// file and for steps that are not implemented, which it names.
Tokenizer read_tokenizer_json(std::string_view text, const std::string& name);

// Makes the tokenizer that the metadata of a GGUF file describes: byte-level BPE (model "gpt2") or
// SentencePiece
// ("llama").
Tokenizer gguf_tokenizer(const GgufFile& file, const std::string& path);

// Reads the tokenizer of a Hugging Face folder (tokenizer.json, else tokenizer.model, else vocab.json with
// merges.txt) or a GGUF file. Throws Error: 66 where there is none, 65.
Tokenizer load_tokenizer(const std::string& path);
bool has_tokenizer(const std::string& path);

// The metadata by which a GGUF file of so many tokens describes the tokenizer.json of a folder. Throws
// Error(65) for all but byte-level BPE whose way of cutting texts llama.cpp has a name for, and BPE that
// merges as SentencePiece would.
std::vector<std::pair<std::string, GgufField>> gguf_tokenizer_fields(const std::string& folder,
                                                                     int64_t vocabulary);

// The opposite: tokenizer.json and tokenizer_config.json, by name, of what the metadata of a GGUF file
// describes. Throws as gguf_tokenizer().
std::map<std::string, std::string> folder_tokenizer(const GgufFile& file, const std::string& path);

// What a tokenizer is, read from its file without making it, which takes a tenth of the time.
struct TokenizerSummary {
  std::string kind;    // as Tokenizer::kind(); the file's own word for one that is not known
  int64_t tokens = 0;  // of its vocabulary
};
TokenizerSummary summarize_tokenizer(const std::string& path);  // of has_tokenizer(path)

}  // namespace mcompress
