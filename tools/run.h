#pragma once

#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>

#include "mcompress/data/images.h"
#include "mcompress/measure/accuracy.h"

namespace mcompress::cli {

// A subcommand: how it is called, and what it does. run() returns the exit code's meaning by
// throwing Error, or 0, or 3 where a gate failed.
struct Command {
  std::string name, summary;
  std::function<void(CLI::App&)> add_options;
  std::function<int()> run;
};

Command inspect_command();
Command evaluate_command();
Command quantize_command();
inline std::vector<Command> all_commands() {
  return {inspect_command(), evaluate_command(), quantize_command()};
}

// Options that several commands share.
struct DataArguments {
  std::string path;
  ImageOptions options;
  int64_t batch_size = 250;
};
void add_data_options(CLI::App& app, DataArguments& data);

struct RunArguments {
  std::string report;
  int threads = 0;
  bool force = false, trust_code = false;
};
void add_run_options(CLI::App& app, RunArguments& arguments);
void apply(const RunArguments& arguments);

// Fails where the report cannot be written, before the long work.
void check_report(const RunArguments& arguments);
// Writes the report, to stdout for "-". Adds tool, command, peak memory and warnings.
void write_report(nlohmann::ordered_json report, const std::string& command, const RunArguments& arguments);

nlohmann::ordered_json to_json(const Accuracy& accuracy);
nlohmann::ordered_json describe_file(const std::string& path);  // path, bytes, sha256

}  // namespace mcompress::cli
