#include "compress_steps.h"

#include <filesystem>

#include <fmt/format.h>

#include "log.h"
#include "mcompress/formats/bitmask.h"
#include "mcompress/model/program.h"
#include "models.h"

namespace mcompress::cli {

void add_compress_options(CLI::App& app, CompressOptions& options, const std::string& output_help) {
  app.add_option("model,-m,--model", options.model,
                 "Model: TorchScript, state dict, safetensors or Hugging Face folder")
      ->required();
  add_output_options(app, options, output_help);
  app.add_option("--layer", options.selection.only,
                 "Only layers whose name matches this expression; repeatable")
      ->allow_extra_args(false);
  app.add_option("--ignore", options.selection.ignore, "Leave layers alone whose name matches; repeatable")
      ->allow_extra_args(false);
  add_text_options(app, options.text);
}

void add_output_options(CLI::App& app, CompressOptions& options, const std::string& output_help) {
  app.add_option("-o,--output", options.output, output_help);
  app.add_flag("--dry-run", options.dry_run,
               "Print the decision for each layer and the predicted bytes, and stop");
  add_gate_options(app, options.gates);
  add_eval_options(app, options.eval);
}

void check_not_stdout(const std::string& output) {
  if (output == "-")
    throw error(Exit::kUsage, "-o - is not possible: an output is a file or folder; name one");
}

void check_compress_options(const CompressOptions& options, const std::string& command) {
  if (options.output.empty() && !options.dry_run)
    throw error(Exit::kUsage, "{} needs -o/--output, or --dry-run", command);
  check_not_stdout(options.output);
  check_gate_options(options.gates, options.eval);
}

void check_not_stored(const std::map<std::string, std::string>& metadata, const CompressOptions& options) {
  if (is_bitmask(metadata))
    throw bad_data("'{}' is stored as a bitmask; run 'mcompress expand' on it first", options.model);
}

void decide_all(std::vector<Decision>& plan, const CompressOptions& options,
                const std::function<std::string(LayerKind)>& obstacle_of) {
  decide(plan, options.selection, obstacle_of, options.model);
}

void evaluate_input(const CompressOptions& options, Report& report) {
  if (options.eval.command.empty() || options.dry_run) return;
  report.before.emplace();
  report.before->custom = timed(report, "evaluate command before",
                                [&] { return run_eval_command(options.eval.command, options.model); });
  if (options.gates.max_accuracy_drop && options.eval.data_path.empty() && !report.before->quality()) {
    throw error(Exit::kUsage, "--max-accuracy-drop needs 'top1' or 'accuracy' from --eval-command");
  }
}

void refuse_output_inside(const std::string& output, const std::string& folder) {
  std::error_code ignored;
  if (is_inside(output, folder) && !std::filesystem::equivalent(output, folder, ignored))
    throw error(Exit::kCannotCreate, "output '{}' is inside the model's folder '{}'; choose another place",
                output, folder);
}

void check_for_format(const CompressOptions& options, ModelFormat format) {
  const bool language = format == ModelFormat::kHuggingFace;
  if (language && !options.output.empty()) refuse_output_inside(options.output, options.model);
  std::string given = given_text_option(options.text);
  if (given.empty() && options.gates.max_perplexity_ratio) given = "--max-perplexity-ratio";
  if (!given.empty() && !language) {
    throw error(Exit::kUsage, "{} is for language models, folders with a config.json, and '{}' is none",
                given, options.model);
  }
  if (!language || options.eval.data_path.empty()) return;
  const GateOptions& gates = options.gates;
  if (gates.max_latency_ratio || (gates.max_accuracy_drop && options.eval.command.empty())) {
    throw error(Exit::kUsage,
                "{} is not measured of a language model; use --max-perplexity-ratio or --min-agreement",
                gates.max_latency_ratio ? "--max-latency-ratio" : "--max-accuracy-drop");
  }
}

std::optional<TextBefore> open_text(const CompressOptions& options, ModelFormat format, const RunOptions& run,
                                    Report& report) {
  if (options.eval.data_path.empty()) return std::nullopt;
  if (format != ModelFormat::kHuggingFace) {
    throw error(Exit::kUsage,
                "'{}' holds weights without a program, so --eval-data cannot be used; pass TorchScript or "
                "--eval-command",
                options.model);
  }
  return TextBefore(options.model, options.text, options.eval, run, report);
}

std::optional<Dataset> read_eval_data(const CompressOptions& options, Report& report) {
  if (options.eval.data_path.empty()) return std::nullopt;
  return timed(report, "read data", [&] { return load_dataset(options.eval.data_path, options.eval.data); });
}

std::optional<Dataset> read_calibration(const std::string& path, int64_t nsamples,
                                        const CompressOptions& options, Report& report) {
  if (path.empty()) return std::nullopt;
  DataOptions rows = options.eval.data;
  rows.split = "train";
  rows.limit = nsamples;
  return timed(report, "read calibration data", [&] { return load_inputs(path, rows); });
}

void evaluate_programs(const torch::jit::Module& original, const torch::jit::Module& written,
                       const Dataset& data, const CompressOptions& options, Report& report) {
  const auto metrics = timed(report, "evaluate", [&] {
    return measure_programs({original, written}, data, options.eval.batch_size);
  });
  const auto custom = report.before ? report.before->custom : std::map<std::string, double>();
  report.before = metrics[0];
  report.before->custom = custom;
  report.after = metrics[1];
}

LayerRecord record_of(const Decision& decision, const std::string& action, uint64_t compressed_bytes) {
  const bool compressed = decision.reason.empty();
  return {decision.name,   name_of(decision.kind), compressed ? action : "keep",
          decision.reason, decision.bytes_before,  compressed ? compressed_bytes : decision.bytes_before};
}

LayerRecord other_weight(const std::string& name, uint64_t bytes) {
  return {name,  "other", "keep", "not the weight of a linear layer, convolution or embedding",
          bytes, bytes,   {},     {}};
}

namespace {

void log_layers(const Report& report) {
  for (const LayerRecord& layer : report.layers) {
    log_detail(
        fmt::format("{}: {}{}", layer.name, layer.decision, layer.reason.empty() ? "" : ", " + layer.reason));
  }
}

void print_plan(const Report& report) {
  for (const LayerRecord& layer : report.layers) {
    fmt::print("{:<48} {:<10} {:>12} -> {:>12} bytes  {}\n", printable(layer.name), layer.decision,
               layer.bytes_before, layer.bytes_after, printable(layer.reason));
  }
  if (report.predicted_bytes) fmt::print("predicted output: {} bytes\n", *report.predicted_bytes);
}

}  // namespace

void finish_dry_run(const RunOptions& run, const Report& report) {
  if (run.report != "-") print_plan(report);
}

torch::jit::Module write_reopened(const CompressOptions& options, const RunOptions& run,
                                  const std::string& serialized, Report& report) {
  OutputFile file(options.output, run.force);
  timed(report, "write", [&] { write_program(serialized, file); });
  const auto reopened = reopen(report, [&] { return load_program(file.temporary(), run.trust_code); });
  file.commit();
  return reopened;
}

void conclude(const CompressOptions& options, Report& report) {
  if (!options.eval.command.empty()) {
    if (!report.after) report.after.emplace();
    try {
      report.after->custom = timed(report, "evaluate command after",
                                   [&] { return run_eval_command(options.eval.command, options.output); });
    } catch (const Error& failure) {
      throw error(failure.code(), "'{}' is written, but could not be measured: {}", options.output,
                  failure.what());
    }
  }
  if (report.size_ratio() < 1) report.warnings.emplace_back("the output is larger than the input");
  if (!check_gates(options.gates, report)) report.exit_code = static_cast<int>(Exit::kGateFailed);
  log_layers(report);
}

}  // namespace mcompress::cli
