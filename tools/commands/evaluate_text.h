#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "command.h"

namespace mcompress::cli {

// How a language model is measured on text.
struct TextCommand {
  std::string reference, compute = "fp32", layout = "file", field;
  std::optional<int64_t> seqlen;
  int64_t windows = 0, stride = 0;
};
void add_text_options(CLI::App& app, TextCommand& command);
void add_reference_option(CLI::App& app, TextCommand& command);

// The first of these options that was given though the model is none of text; empty where none was.
std::string given_text_option(const TextCommand& command);

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
