#include <nlohmann/json.hpp>

#include "command.h"
#include "mcompress/base/error.h"
#include "mcompress/base/process.h"
#include "mcompress/formats/json.h"

namespace mcompress::cli {

namespace {

// Accepts "99%" for 0.99.
CLI::Validator percent_or_fraction() {
  const auto convert = [](std::string& text) {
    if (!text.ends_with('%')) return std::string();
    double number = 0;
    if (!CLI::detail::lexical_cast(text.substr(0, text.size() - 1), number))
      return "'" + text + "' is no percentage";
    text = fmt::format("{}", number / 100);
    return std::string();
  };
  return {convert, "FRACTION or %", "percent"};
}

}  // namespace

void add_run_options(CLI::App& app, RunOptions& options) {
  app.add_option("--report", options.report,
                 "Write a JSON report to this file; -: to stdout, and nothing else there");
  app.add_option("--config", options.config, "TOML recipe: keys are the long options of the command");
  app.add_option("--seed", options.seed, "Seed of all random choices");
  app.add_option("-t,--threads", options.threads, "CPU threads; 0: one a core")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--progress", options.progress, "auto: a bar on a terminal, lines elsewhere")
      ->check(CLI::IsMember({"auto", "bar", "lines", "jsonl", "none"}));
  app.add_option("--log-format", options.log_format, "How errors are written to stderr")
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
                 "inputs.npy,labels.npy");
  app.add_option("--data-config", options.data_config,
                 "TOML file with scale, mean, std, layout, split or limit for the data");
  app.add_option("--split", options.data.split, "Which part of the data")
      ->check(CLI::IsMember({"test", "train"}));
  app.add_option("--scale", options.data.scale,
                 "Factor for every value; default 1/255 for bytes, 1 otherwise");
  app.add_option("--mean", options.data.mean, "Mean to subtract, one a channel")->delimiter(',');
  app.add_option("--std", options.data.stddev, "Deviation to divide by, one a channel")->delimiter(',');
  app.add_option("--layout", options.data.layout, "How images lie in .npy and safetensors")
      ->check(CLI::IsMember({"nchw", "nhwc"}));
  app.add_option("--limit", options.data.limit, "Use the first rows only; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--batch-size", options.batch_size, "Samples in one forward pass")
      ->check(CLI::PositiveNumber);
  app.add_option("--eval-command", options.command,
                 "Your own program, run with {model} replaced by the model's path; it prints one JSON object "
                 "of numbers");
}

void add_gate_options(CLI::App& app, GateOptions& gates) {
  app.add_option("--max-accuracy-drop", gates.max_accuracy_drop,
                 "Gate: top-1 (or 'accuracy') drops by at most this, 0.5% or 0.005")
      ->transform(percent_or_fraction());
  app.add_option("--drop", gates.drop, "Whether the drop is of points or of the accuracy before")
      ->check(CLI::IsMember({"absolute", "relative"}));
  app.add_option("--min-size-ratio", gates.min_size_ratio,
                 "Gate: the output is at least this many times smaller");
  app.add_option("--max-latency-ratio", gates.max_latency_ratio,
                 "Gate: latency after by latency before is at most this");
  app.add_option("--min-agreement", gates.min_agreement,
                 "Gate: share of samples with the same class, 99% or 0.99")
      ->transform(percent_or_fraction());
}

void check_gate_options(const GateOptions& gates, const EvalOptions& eval) {
  if (gates.max_accuracy_drop && eval.data_path.empty() && eval.command.empty()) {
    throw error(Exit::kUsage, "--max-accuracy-drop needs --eval-data or --eval-command");
  }
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
