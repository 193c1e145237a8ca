#include "evaluate_text.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "mcompress/base/error.h"
#include "mcompress/measure/perplexity.h"
#include "models.h"

namespace mcompress::cli {

namespace {

constexpr const char* kGroup = "Text";
constexpr const char* kRandom = "random-tokens";

// For trying whether a model runs, without any text.
std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, int64_t seed) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed));
  const at::Tensor ids = at::randint(0, vocabulary, {count}, random, at::kInt);
  return {ids.const_data_ptr<int32_t>(), ids.const_data_ptr<int32_t>() + count};
}

TokenWindows read_windows(const std::string& folder, const TextCommand& command, const std::string& text,
                          const DecoderConfig& config, const RunOptions& run) {
  constexpr int64_t kLength = 2048, kRandomWindows = 8;
  const int64_t length = command.seqlen.value_or(std::min(kLength, config.positions));
  if (length > config.positions)
    throw error(Exit::kUsage, "--seqlen {} is beyond the {} positions of '{}'; pass at most {}", length,
                config.positions, folder, config.positions);
  const int64_t stride = command.stride == 0 ? length : command.stride;
  if (text == kRandom) {
    const int64_t windows = command.windows == 0 ? kRandomWindows : command.windows;
    return cut_windows(random_tokens(length + (windows - 1) * stride, config.vocabulary, run.seed), length,
                       stride, windows);
  }
  TextOptions options;
  if (command.layout == "rows") options.layout = TextOptions::Layout::kRows;
  if (!command.field.empty()) options.field = command.field;
  const std::string content = read_text(text, options);
  return cut_windows(load_tokenizer(folder).encode(content), length, stride, command.windows);
}

}  // namespace

void add_text_options(CLI::App& app, TextCommand& command) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(kGroup);
  };
  add_count(app, "--seqlen", command.seqlen,
            "Tokens of a window; default 2048, or the positions of the model where they are fewer")
      ->check(CLI::Range(2, 1 << 24))
      ->group(kGroup);
  add("--windows", command.windows, "Measure the first windows only; 0: all")->check(at_least(0));
  add("--stride", command.stride,
      "Tokens from one window to the next; 0: windows that do not overlap, as in the GPTQ papers")
      ->check(at_least(0));
  add("--text-layout", command.layout,
      "file: the text as it is; rows: lines as rows of the WikiText data set, joined by two line ends")
      ->check(CLI::IsMember({"file", "rows"}));
  add("--text-field", command.field, "Which text of the objects of a .jsonl file; default text");
  add("--compute", command.compute, "Type to compute in")->check(CLI::IsMember({"fp32", "bf16"}));
  add("--reference", command.reference,
      "Folder of the model before it was compressed: also measure how far the next-token distributions are "
      "from "
      "its own");
}

std::string given_text_option(const TextCommand& command) {
  const TextCommand plain;
  if (command.seqlen) return "--seqlen";
  if (command.windows != plain.windows) return "--windows";
  if (command.stride != plain.stride) return "--stride";
  if (command.layout != plain.layout) return "--text-layout";
  if (!command.field.empty()) return "--text-field";
  if (command.compute != plain.compute) return "--compute";
  return command.reference.empty() ? "" : "--reference";
}

Metrics evaluate_text(const std::string& model, const TextCommand& command, const std::string& text,
                      const RunOptions& run, Report& report) {
  const at::ScalarType compute = command.compute == "bf16" ? at::kBFloat16 : at::kFloat;
  const Decoder decoder = timed(report, "load", [&] { return Decoder(model, compute); });
  std::optional<Decoder> reference;
  if (!command.reference.empty())
    timed(report, "load reference", [&] { reference.emplace(command.reference, compute); });
  const TokenWindows windows =
      timed(report, "read text", [&] { return read_windows(model, command, text, decoder.config(), run); });
  Metrics metrics;
  timed(report, "evaluate", [&] {
    if (!reference) {
      metrics.text = measure_text(decoder, windows);
      return;
    }
    const TextComparison both = compare_text(decoder, *reference, windows);
    metrics.text = both.model;
    report.reference = Reference{command.reference, both.reference, both.divergence};
  });
  return metrics;
}

}  // namespace mcompress::cli
