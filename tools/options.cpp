#include <charconv>
#include <cmath>
#include <limits>

#include <nlohmann/json.hpp>

#include "command.h"
#include "mcompress/base/error.h"
#include "mcompress/base/process.h"
#include "mcompress/formats/json.h"

namespace mcompress::cli {

namespace {

// A number with nothing behind it; NaN where `text` is none.
double to_number(const std::string& text) {
  double number = NAN;
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, number);
  return result.ec == std::errc() && result.ptr == end ? number : NAN;
}

CLI::Validator whole_number(int64_t low, int64_t high, const std::string& range) {
  const auto check = [=](std::string& text) -> std::string {
    int64_t number = 0;
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, number);
    const bool fits = result.ec == std::errc() && result.ptr == end && number >= low && number <= high;
    return fits ? "" : fmt::format("'{}' is no whole number {}", text, range);
  };
  return {check, "", "whole number"};
}

CLI::Validator finite_number(bool positive) {
  const auto check = [=](std::string& text) -> std::string {
    const double number = to_number(text);
    if (!std::isfinite(number)) return fmt::format("'{}' is no number", text);
    return positive && number <= 0 ? fmt::format("'{}' is not above 0", text) : "";
  };
  return {check, "", "number"};
}

// A fraction from 0 to 1; "99%" is 0.99.
CLI::Validator fraction() {
  const auto convert = [](std::string& text) -> std::string {
    const bool percent = text.ends_with('%');
    const double number = to_number(percent ? text.substr(0, text.size() - 1) : text) / (percent ? 100 : 1);
    if (!(number >= 0 && number <= 1))
      return fmt::format("'{}' is no fraction from 0 to 1, nor a percentage such as 0.5%", text);
    text = fmt::format("{}", number);
    return "";
  };
  return {convert, "FRACTION or %", "fraction"};
}

CLI::Validator not_empty() {
  const auto check = [](std::string& text) -> std::string { return text.empty() ? "it is empty" : ""; };
  return {check, "", "text"};
}

}  // namespace

void add_run_options(CLI::App& app, RunOptions& options) {
  app.add_option("--report", options.report,
                 "Write a JSON report to this file; -: to stdout, and nothing else there")
      ->check(not_empty());
  app.add_option("--config", options.config, "TOML recipe: keys are the long options of the command")
      ->check(not_empty());
  app.add_option("--seed", options.seed, "Seed of all random choices")
      ->check(whole_number(INT64_MIN, INT64_MAX, "of 64 bits"));
  app.add_option("-t,--threads", options.threads, "CPU threads; 0: one a core")
      ->check(whole_number(0, 1024, "from 0 to 1024"));
  app.add_option("--progress", options.progress, "auto: a bar on a terminal, lines elsewhere")
      ->check(CLI::IsMember({"auto", "bar", "lines", "jsonl", "none"}));
  app.add_option("--log-format", options.log_format, "How messages are written to stderr")
      ->check(CLI::IsMember({"text", "json"}));
  app.add_flag("--force", options.force, "Replace existing outputs");
  app.add_flag("--trust-code", options.trust_code,
               "Load a TorchScript file even though its code reaches files");
  app.add_flag("-q,--quiet", options.quiet, "Only errors on stderr");
  app.add_flag("-v,--verbose", options.verbose, "Also what is done with each layer");
}

void add_eval_options(CLI::App& app, EvalOptions& options) {
  app.add_option("--eval-data,--data", options.data_path,
                 "Labelled data: folder or file of an IDX pair, CIFAR-10 binary, .npz, safetensors, or "
                 "inputs.npy,labels.npy; of a language model a text, .gz or .jsonl too, to which no special "
                 "tokens are added, token ids in .npy, .safetensors or .bin, or random-tokens");
  app.add_option("--data-config", options.data_config,
                 "TOML file with scale, mean, std, layout, split or limit for the data")
      ->check(not_empty());
  app.add_option("--split", options.data.split, "Which part of the data")
      ->check(CLI::IsMember({"test", "train"}));
  app.add_option("--scale", options.data.scale,
                 "Factor for every value; default 1/255 for bytes, 1 otherwise")
      ->check(finite_number(true));
  app.add_option("--mean", options.data.mean, "Mean to subtract, one a channel")
      ->delimiter(',')
      ->check(finite_number(false));
  app.add_option("--std", options.data.stddev, "Deviation to divide by, one a channel")
      ->delimiter(',')
      ->check(finite_number(true));
  app.add_option("--layout", options.data.layout, "How images lie in .npy and safetensors")
      ->check(CLI::IsMember({"nchw", "nhwc"}));
  app.add_option("--limit", options.data.limit, "Use the first rows only; 0: all")
      ->check(whole_number(0, INT64_MAX, "from 0"));
  app.add_option("--batch-size", options.batch_size, "Samples in one forward pass")
      ->check(whole_number(1, INT64_MAX, "from 1"));
  app.add_option("--eval-command", options.command,
                 "Your own program, run with {model} replaced by the model's path; it prints one JSON object "
                 "of numbers");
}

CLI::Validator number_from(double low, double high) {
  const auto check = [=](std::string& text) -> std::string {
    const double number = to_number(text);
    if (number >= low && number <= high) return "";
    if (high == std::numeric_limits<double>::max())
      return fmt::format("'{}' is no number from {}", text, low);
    return fmt::format("'{}' is no number from {} to {}", text, low, high);
  };
  return {check, "", "number"};
}

CLI::Validator at_least(double low) { return number_from(low, std::numeric_limits<double>::max()); }

double fraction_of(const std::string& text) {
  std::string number = text;
  const std::string problem = fraction()(number);
  if (!problem.empty()) throw error(Exit::kUsage, "{}", problem);
  return to_number(number);
}

CLI::Option* add_fraction(CLI::App& app, const std::string& names, std::optional<double>& value,
                          const std::string& help) {
  return app.add_option(names, value, help)->transform(fraction());
}

CLI::Option* add_count(CLI::App& app, const std::string& names, std::optional<int64_t>& value,
                       const std::string& help) {
  return app.add_option(names, value, help)->check(whole_number(0, INT64_MAX, "from 0"));
}

void add_nsamples(CLI::App& app, int64_t& value) {
  app.add_option("--nsamples", value, "Samples of the calibration data, the first ones")
      ->check(whole_number(1, INT64_MAX, "from 1"));
}

void add_gate_options(CLI::App& app, GateOptions& gates) {
  app.add_option("--max-accuracy-drop", gates.max_accuracy_drop,
                 "Gate: top-1 (or 'accuracy') drops by at most this, 0.5% or 0.005")
      ->transform(fraction());
  app.add_option("--drop", gates.drop, "Whether the drop is of points or of the accuracy before")
      ->check(CLI::IsMember({"absolute", "relative"}));
  app.add_option("--max-perplexity-ratio", gates.max_perplexity_ratio,
                 "Gate: perplexity after by perplexity before is at most this, 1.05")
      ->check(finite_number(true));
  app.add_option("--min-size-ratio", gates.min_size_ratio,
                 "Gate: the output is at least this many times smaller")
      ->check(finite_number(true));
  app.add_option("--max-latency-ratio", gates.max_latency_ratio,
                 "Gate: latency after by latency before is at most this")
      ->check(finite_number(true));
  app.add_option("--min-agreement", gates.min_agreement,
                 "Gate: share of samples with the same class, or of tokens with the same most likely next, "
                 "99% or 0.99")
      ->transform(fraction());
}

void check_gate_options(const GateOptions& gates, const EvalOptions& eval) {
  if (gates.max_accuracy_drop && eval.data_path.empty() && eval.command.empty()) {
    throw error(Exit::kUsage, "--max-accuracy-drop needs --eval-data or --eval-command");
  }
  if (gates.max_perplexity_ratio && eval.data_path.empty())
    throw error(Exit::kUsage, "--max-perplexity-ratio needs --eval-data");
  if ((gates.max_latency_ratio || gates.min_agreement) && eval.data_path.empty()) {
    throw error(Exit::kUsage, "--max-latency-ratio and --min-agreement need --eval-data");
  }
}

std::map<std::string, double> run_eval_command(const std::string& command, const std::string& path) {
  const std::string placeholder = "{model}";
  std::string line = command;
  size_t at = line.find(placeholder);
  if (at == std::string::npos)
    throw error(Exit::kUsage, "--eval-command '{}' has no {{model}} in it", command);
  for (; at != std::string::npos; at = line.find(placeholder, at)) {
    const std::string quoted = shell_quoted(path);
    line.replace(at, placeholder.size(), quoted);
    at += quoted.size();
  }
  const nlohmann::json object = parse_json(run_shell(line), "output of --eval-command");
  if (!object.is_object()) throw bad_data("--eval-command printed no JSON object: {}", line);
  std::map<std::string, double> numbers;
  for (const auto& [name, value] : object.items()) {
    if (!value.is_number())
      throw bad_data("--eval-command printed '{}': {}, which is no number", name, value.dump());
    numbers[name] = value.get<double>();
  }
  return numbers;
}

}  // namespace mcompress::cli
