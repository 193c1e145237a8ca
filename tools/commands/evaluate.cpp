#include <optional>

#include "command.h"
#include "evaluate_text.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/program.h"
#include "models.h"

namespace mcompress::cli {

namespace {

struct Options {
  std::string model;
  EvalOptions eval;
  TextCommand text;
};

void evaluate(const Options& options, const RunOptions& run, Report& report) {
  const EvalOptions& eval = options.eval;
  if (eval.data_path.empty() && eval.command.empty()) {
    throw error(Exit::kUsage, "evaluate needs --eval-data or --eval-command; see mcompress evaluate --help");
  }
  const ModelFormat format = detect_model(options.model);
  Metrics metrics;
  std::optional<WeightCount> count;
  const bool language = format == ModelFormat::kHuggingFace || format == ModelFormat::kGguf;
  if (const std::string given = given_text_option(options.text); !language && !given.empty()) {
    throw error(Exit::kUsage,
                "{} is for language models, folders with a config.json and GGUF files, and '{}' is none",
                given, options.model);
  }
  if (!eval.data_path.empty() && language) {
    metrics = evaluate_text(options.model, options.text, eval, run, report);
  } else if (!eval.data_path.empty()) {
    if (format != ModelFormat::kTorchScript) {
      throw bad_data("'{}' holds weights without a program, so it cannot be run; pass TorchScript",
                     options.model);
    }
    const Dataset data = timed(report, "read data", [&] { return load_dataset(eval.data_path, eval.data); });
    const auto program = timed(report, "load", [&] { return load_program(options.model, run.trust_code); });
    count = count_program(program);
    metrics =
        timed(report, "evaluate", [&] { return measure_programs({program}, data, eval.batch_size).front(); });
  }
  if (!eval.command.empty()) {
    metrics.custom =
        timed(report, "evaluate command", [&] { return run_eval_command(eval.command, options.model); });
  }
  if (!count) count = count_model(options.model, format, run.trust_code);
  report.input = describe_artifact(options.model, name_of(format), *count);
  report.before = metrics;
}

}  // namespace

Command evaluate_command() {
  auto options = std::make_shared<Options>();
  const auto add_options = [options](CLI::App& app) {
    app.add_option("model,-m,--model", options->model, "Model to measure")->required();
    add_eval_options(app, options->eval);
    add_text_options(app, options->text);
    add_reference_option(app, options->text);
  };
  const auto run = [options](const RunOptions& r, Report& report) { evaluate(*options, r, report); };
  return {"evaluate", "Measure accuracy and speed of a model", add_options, run};
}

}  // namespace mcompress::cli
