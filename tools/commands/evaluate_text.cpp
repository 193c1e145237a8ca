#include "evaluate_text.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "mcompress/base/error.h"
#include "mcompress/data/text.h"
#include "mcompress/measure/perplexity.h"
#include "mcompress/model/decoder.h"
#include "models.h"

namespace mcompress::cli {

namespace {

constexpr const char* kGroup = "Text";
constexpr const char* kRandom = "random-tokens";

// Options of images and tables, which mean nothing for text. --limit counts windows.
void check_eval_options(const EvalOptions& eval) {
  const DataOptions plain;
  const std::vector<std::pair<const char*, bool>> used = {{"--split", eval.data.split != plain.split},
                                                          {"--scale", eval.data.scale.has_value()},
                                                          {"--mean", !eval.data.mean.empty()},
                                                          {"--std", !eval.data.stddev.empty()},
                                                          {"--layout", eval.data.layout != plain.layout},
                                                          {"--data-config", !eval.data_config.empty()}};
  for (const auto& [name, given] : used) {
    if (given)
      throw error(Exit::kUsage, "{} is for images and tables, and a language model is given text", name);
  }
}

// For trying whether a model runs, without any text.
std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, int64_t seed) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed));
  const at::Tensor ids = at::randint(0, vocabulary, {count}, random, at::kInt);
  return {ids.const_data_ptr<int32_t>(), ids.const_data_ptr<int32_t>() + count};
}

at::ScalarType type_of(const TextCommand& command) {
  return command.compute == "bf16" ? at::kBFloat16 : at::kFloat;
}

// Ids of the text, without special tokens around it.
std::vector<int32_t> encode(const std::string& model, const std::string& text, const std::string& path) {
  const Tokenizer tokenizer = load_tokenizer(model);
  try {
    return tokenizer.encode(text);
  } catch (const Error& failure) {
    throw error(failure.code(), "text '{}': {}", path, failure.what());
  }
}

void check_positions(const std::string& path, const DecoderConfig& config, const TextCommand& command) {
  if (command.seqlen.value_or(0) > config.positions)
    throw error(Exit::kUsage, "{} {} is beyond the {} positions of '{}'; pass at most {}",
                command.length_option, *command.seqlen, config.positions, path, config.positions);
}

}  // namespace

TokenWindows read_windows(const std::string& model, const TextCommand& command, const std::string& path,
                          int64_t limit, const DecoderConfig& config, const RunOptions& run) {
  constexpr int64_t kLength = 2048, kRandomWindows = 8, kMostRandom = int64_t{1} << 28;
  check_positions(model, config, command);
  const int64_t length = command.seqlen.value_or(std::min(kLength, config.positions));
  const int64_t stride = command.stride == 0 ? length : command.stride;
  if (command.windows != 0) limit = command.windows;
  if (path == kRandom) {
    const int64_t windows = limit == 0 ? kRandomWindows : limit;
    if (windows > kMostRandom / length)
      throw error(Exit::kUsage,
                  "--windows {} of {} random tokens are more than anybody needs; pass at most {}", windows,
                  length, kMostRandom / length);
    return cut_windows(random_tokens(windows * length, config.vocabulary, run.seed), length, stride, windows);
  }
  if (is_token_file(path)) {
    if (command.layout != "file" || !command.field.empty())
      throw error(Exit::kUsage, "{} is for text, and '{}' holds token ids",
                  command.field.empty() ? "--text-layout" : "--text-field", path);
    return cut_windows(read_token_ids(path, config.vocabulary), length, stride, limit);
  }
  TextOptions options;
  if (command.layout == "rows") options.layout = TextOptions::Layout::kRows;
  if (!command.field.empty()) options.field = command.field;
  const std::string text = read_text(path, options);
  const std::vector<int32_t> ids = encode(model, text, path);
  if (!command.reference.empty() && has_tokenizer(command.reference) &&
      encode(command.reference, text, path) != ids)
    throw bad_data(
        "the tokenizers of '{}' and '{}' make other tokens of the text, so the models cannot be compared",
        model, command.reference);
  return cut_windows(ids, length, stride, limit);
}

void add_text_options(CLI::App& app, TextCommand& command) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(kGroup);
  };
  add_count(app, command.length_option, command.seqlen,
            "Tokens of a window; default 2048, or the positions of the model where they are fewer")
      ->check(CLI::Range(2, 1 << 24))
      ->group(kGroup);
  add("--windows", command.windows, "Measure the first windows only; 0: --limit, or all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  add("--stride", command.stride,
      "Tokens from one window to the next; 0: windows that do not overlap, as in the GPTQ papers")
      ->check(at_least(0));
  add("--text-layout", command.layout,
      "file: the text as it is; rows: lines as rows of the WikiText data set, joined by two line ends")
      ->check(CLI::IsMember({"file", "rows"}));
  add("--text-field", command.field, "Which text of the objects of a .jsonl file; default text");
  add("--compute", command.compute, "Type to compute in")->check(CLI::IsMember({"fp32", "bf16"}));
}

void add_reference_option(CLI::App& app, TextCommand& command) {
  app.add_option(
         "--reference", command.reference,
         "Folder of the model before it was compressed: also measure how far the next-token distributions "
         "are from its own")
      ->group(kGroup);
}

std::string given_text_option(const TextCommand& command) {
  const TextCommand plain;
  if (command.seqlen) return command.length_option;
  if (command.windows != plain.windows) return "--windows";
  if (command.stride != plain.stride) return "--stride";
  if (command.layout != plain.layout) return "--text-layout";
  if (!command.field.empty()) return "--text-field";
  if (command.compute != plain.compute) return "--compute";
  return command.reference.empty() ? "" : "--reference";
}

Metrics evaluate_text(const std::string& model, const TextCommand& command, const EvalOptions& eval,
                      const RunOptions& run, Report& report) {
  check_eval_options(eval);
  const at::ScalarType compute = type_of(command);
  const Decoder decoder = timed(report, "load", [&] { return Decoder(model, compute); });
  std::optional<Decoder> reference;
  if (!command.reference.empty())
    timed(report, "load reference", [&] { reference.emplace(command.reference, compute); });
  if (reference) check_positions(command.reference, reference->config(), command);
  DecoderConfig config = decoder.config();
  if (reference) config.positions = std::min(config.positions, reference->config().positions);
  const TokenWindows windows = timed(report, "read text", [&] {
    return read_windows(model, command, eval.data_path, eval.data.limit, config, run);
  });
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

struct TextBefore::State {
  std::string path;
  at::ScalarType compute;
  Decoder model;
  TokenWindows windows;
};

TextBefore::TextBefore(const std::string& model, const TextCommand& command, const EvalOptions& eval,
                       const RunOptions& run, Report& report) {
  check_eval_options(eval);
  Decoder decoder = timed(report, "load", [&] { return Decoder(model, type_of(command)); });
  TokenWindows windows = timed(report, "read text", [&] {
    return read_windows(model, command, eval.data_path, eval.data.limit, decoder.config(), run);
  });
  state_ = std::make_unique<State>(State{model, type_of(command), std::move(decoder), std::move(windows)});
}
TextBefore::~TextBefore() = default;
TextBefore::TextBefore(TextBefore&&) noexcept = default;

void TextBefore::compare(const std::string& written, Report& report) const {
  const TextComparison both = timed(report, "evaluate", [&] {
    try {
      return compare_text(Decoder(written, state_->compute), state_->model, state_->windows);
    } catch (const Error& failure) {
      throw error(failure.code(), "'{}' is written, but could not be measured: {}", written, failure.what());
    }
  });
  if (!report.before) report.before.emplace();
  if (!report.after) report.after.emplace();
  report.before->text = both.reference;
  report.after->text = both.model;
  report.reference = Reference{state_->path, both.reference, both.divergence};
}

}  // namespace mcompress::cli
