#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "command.h"
#include "mcompress/data/text.h"
#include "mcompress/model/decoder.h"

namespace mcompress::cli {

// How a language model is measured on text.
struct TextCommand {
  std::string reference, compute = "fp32", layout = "file", field;
  std::string length_option = "--seqlen";  // how the tokens of a window are given
  std::optional<int64_t> seqlen;
  int64_t windows = 0, stride = 0;
};
void add_text_options(CLI::App& app, TextCommand& command);
void add_reference_option(CLI::App& app, TextCommand& command);

// The first of these options that was given though the model is none of text; empty where none was.
std::string given_text_option(const TextCommand& command);

// Windows of the text or token ids at a path, which `option` gave, for a model of this configuration;
// `limit`: how many where the command says nothing, 0 for all. Throws Error(2) for windows longer than its
// positions.
TokenWindows read_windows(const std::string& model, const TextCommand& command, const std::string& path,
                          int64_t limit, const DecoderConfig& config, const RunOptions& run);

// Measures the model of a Hugging Face folder or GGUF file on a text, beside its reference where there is
// one.
Metrics evaluate_text(const std::string& model, const TextCommand& command, const EvalOptions& eval,
                      const RunOptions& run, Report& report);

// A language model that is compressed, opened and its text read before the long work, so that what cannot be
// measured is refused at once.
class TextBefore {
 public:
  TextBefore(const std::string& model, const TextCommand& command, const EvalOptions& eval,
             const RunOptions& run, Report& report);
  ~TextBefore();
  TextBefore(TextBefore&&) noexcept;

  // Measures it beside what was written of it, which is compared with it.
  void compare(const std::string& written, Report& report) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mcompress::cli
