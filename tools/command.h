#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "mcompress/data/dataset.h"
#include "mcompress/report/report.h"

namespace mcompress::cli {

// Options that every command has.
struct RunOptions {
  std::string report, config, progress = "auto", log_format = "text";
  int64_t seed = 0;
  int threads = 0;
  std::vector<std::string> inputs;  // files that the run reads, which no output may replace
  bool force = false, trust_code = false, quiet = false, verbose = false;
};

// A subcommand. run() does the work and fills in the report; main prints and writes it.
struct Command {
  std::string name, summary;
  std::function<void(CLI::App&)> add_options;
  std::function<void(const RunOptions&, Report&)> run;
};

Command inspect_command();
Command evaluate_command();
Command quantize_command();
Command prune_command();
Command distill_command();
Command gptq_command();
Command awq_command();
Command expand_command();
Command convert_command();
Command verify_command();
inline std::vector<Command> all_commands() {
  return {inspect_command(), evaluate_command(), quantize_command(), prune_command(),  distill_command(),
          gptq_command(),    awq_command(),      convert_command(),  verify_command(), expand_command()};
}

void add_run_options(CLI::App& app, RunOptions& options);

// How a model is measured: on data, by the user's own program, or not at all.
struct EvalOptions {
  std::string data_path, data_config, command;
  DataOptions data;
  int64_t batch_size = 64;
};
void add_eval_options(CLI::App& app, EvalOptions& options);

// "0.5" or "50%" as a number from 0 to 1. Throws Error(2).
double fraction_of(const std::string& text);
CLI::Option* add_fraction(CLI::App& app, const std::string& names, std::optional<double>& value,
                          const std::string& help);
CLI::Option* add_count(CLI::App& app, const std::string& names, std::optional<int64_t>& value,
                       const std::string& help);

// A number of this range; NaN is in none.
CLI::Validator number_from(double low, double high);
CLI::Validator at_least(double low);

void add_nsamples(CLI::App& app, int64_t& value);

void add_gate_options(CLI::App& app, GateOptions& gates);
// Throws Error(2) where a gate asks for a number that nothing measures.
void check_gate_options(const GateOptions& gates, const EvalOptions& eval);

// The numbers that the user's program prints about the model at `path`: one JSON object on stdout.
std::map<std::string, double> run_eval_command(const std::string& command, const std::string& path);

// Runs `work` as a named phase of the report and returns its result.
template <typename Work>
auto timed(Report& report, const std::string& phase, Work work) {
  const auto start = std::chrono::steady_clock::now();
  struct Recorder {
    Report& report;
    const std::string& phase;
    std::chrono::steady_clock::time_point start;
    ~Recorder() {
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
      report.phases.push_back({phase, spent.count()});
    }
  } const recorder{report, phase, start};
  return work();
}

}  // namespace mcompress::cli
