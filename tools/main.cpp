#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "command.h"
#include "log.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/output.h"
#include "mcompress/base/process.h"
#include "mcompress/base/progress.h"
#include "mcompress/report/version.h"
#include "settings.h"

namespace mcompress::cli {

namespace {

// One run: the parser of the whole program, bound to the options of each command.
struct Program {
  CLI::App app{"Make neural networks smaller and measure what it cost", "mcompress"};
  std::vector<Command> commands = all_commands();
  std::vector<std::unique_ptr<RunOptions>> options;
  bool version = false;  // answered before anything is parsed

  Program() {
    app.require_subcommand(0, 1);
    app.add_flag("--version", version, "Print the version; with --json also what it is built from");
    for (const Command& command : commands) {
      CLI::App& sub = *app.add_subcommand(command.name, command.summary);
      sub.option_defaults()->always_capture_default();
      command.add_options(sub);
      add_run_options(sub, *options.emplace_back(std::make_unique<RunOptions>()));
      name_variables(sub);
    }
  }

  const CLI::App& sub(const std::string& name) const { return *app.get_subcommand(name); }
};

std::vector<std::string> command_names(const Program& program) {
  std::vector<std::string> names;
  for (const Command& command : program.commands) names.push_back(command.name);
  return names;
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// An option with a value that may be left out would take the model for it.
void spell_out(std::vector<std::string>& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    const bool given =
        i + 1 < words.size() && words[i + 1].find_first_not_of("0123456789") == std::string::npos;
    if (words[i] == "--embeddings" && !given) words[i] = "--embeddings=8";
  }
}

void parse(Program& program, std::vector<std::string> words) {
  spell_out(words);
  std::reverse(words.begin(), words.end());  // CLI11 takes them from the back
  program.app.parse(words);
}

// What CLI11 says of a wrong command line, with the nearest known option for an unknown one.
std::string explain(const Program& program, const std::string& command, const std::vector<std::string>& words,
                    const CLI::ParseError& failure) {
  const std::vector<std::string> known = option_names(program.sub(command));
  if (dynamic_cast<const CLI::ExtrasError*>(&failure) != nullptr) {
    for (const std::string& word : words) {
      const std::string head = word.substr(0, word.find('='));
      if (head.starts_with("--") && !contains(known, head)) {
        return fmt::format("unknown option '{}'{}", head, suggestion(head, known));
      }
    }
  }
  return failure.what();
}

// Parses words and recipe; a mistake that only the recipe brings is one of configuration.
Arguments parse_with_config(Program& program, const std::string& command,
                            const std::vector<std::string>& words) {
  const Arguments arguments = add_config(program.sub(command), words);
  try {
    parse(program, arguments.all);
    return arguments;
  } catch (const CLI::Success&) {
    throw;
  } catch (const CLI::ParseError& failure) {
    const std::string text = explain(program, command, words, failure);
    Exit code = Exit::kUsage;
    if (!arguments.from_config.empty()) {
      try {
        Program without;
        parse(without, words);
        code = Exit::kConfig;
      } catch (const CLI::ParseError& alone) {
        if (std::string(alone.what()) != failure.what()) code = Exit::kConfig;
      }
    }
    throw error(code, "{}; see mcompress {} --help", text, command);
  }
}

// The text of a setting, empty where the command has none of that name.
std::string text_of(const std::vector<Setting>& settings, const std::string& name) {
  for (const Setting& setting : settings) {
    const auto* text = std::get_if<std::string>(&setting.value);
    if (setting.name == name && text != nullptr) return *text;
  }
  return "";
}

// The files that the settings name as input; data may be two files with a comma between.
std::vector<std::string> inputs_of(const std::vector<Setting>& settings) {
  std::vector<std::string> inputs;
  for (const char* name : {"model", "config", "data_config", "eval_data", "calib_data", "train_data",
                           "valid_data", "teacher", "student"}) {
    std::string text = text_of(settings, name);
    inputs.push_back(text);
    const size_t comma = text.find(',');
    if (comma == std::string::npos) continue;
    inputs.push_back(text.substr(0, comma));
    inputs.push_back(text.substr(comma + 1));
  }
  return inputs;
}

// LibTorch's warnings are for its programmers.
struct QuietWarnings : c10::WarningHandler {
  void process(const c10::Warning& warning) override { log_detail(warning.msg()); }
};

void prepare(const RunOptions& options, const std::vector<Setting>& settings) {
  static QuietWarnings warnings;
  c10::WarningUtils::set_warning_handler(&warnings);
  drop_startup_code();
  static const std::map<std::string, ProgressStyle> kStyles = {{"auto", ProgressStyle::kAuto},
                                                               {"bar", ProgressStyle::kBar},
                                                               {"lines", ProgressStyle::kLines},
                                                               {"jsonl", ProgressStyle::kJsonLines},
                                                               {"none", ProgressStyle::kNone}};
  set_log(options.quiet ? -1 : options.verbose ? 1 : 0, options.log_format == "json");
  set_progress_style(options.quiet ? ProgressStyle::kNone : kStyles.at(options.progress));
  if (options.threads > 0) at::set_num_threads(options.threads);
  at::manual_seed(static_cast<uint64_t>(options.seed));
  if (!options.report.empty() && options.report != "-") {
    const std::string output = text_of(settings, "output");
    if (std::filesystem::is_directory(output) && is_inside(options.report, output)) {
      throw error(Exit::kCannotCreate, "report '{}' lies inside the output '{}'; choose another name",
                  options.report, output);
    }
    std::vector<std::string> others = options.inputs;
    others.push_back(output);
    check_output(options.report, OutputKind::kFile, options.force, others);
  }
}

void write_report(const Report& report, const RunOptions& options) {
  if (options.report.empty()) return;
  const auto replace = nlohmann::ordered_json::error_handler_t::replace;
  const std::string text = to_json(report).dump(2, ' ', false, replace) + "\n";
  if (options.report == "-") {
    std::fputs(text.c_str(), stdout);
    return;
  }
  OutputFile file(options.report, options.force);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

int print_version(bool json) {
  if (json) {
    fmt::print("{}\n", tool_json().dump(2));
  } else {
    fmt::print("mcompress {}\n", kVersion);
  }
  return 0;
}

// Runs the parsed command; its report decides the exit code.
int execute(const Command& command, const RunOptions& options, std::vector<Setting> settings) {
  prepare(options, settings);
  Report report;
  report.command = command.name;
  report.settings = std::move(settings);
  report.seed = options.seed;
  report.threads = at::get_num_threads();
  command.run(options, report);
  for (const std::string& warning : report.warnings) log_warning(warning);
  for (const Gate& gate : report.gates) {
    if (!gate.passed)
      log_error(fmt::format("gate --{} failed: {:.6g}, and the limit is {:.6g}", gate.name, gate.value,
                            gate.limit));
  }
  if (options.report != "-") fmt::print("{}", to_table(report));
  write_report(report, options);
  return report.exit_code;
}

// Whether errors are wanted as JSON, told before the command line is parsed, which may be wrong.
bool wants_json(const std::vector<std::string>& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--log-format=json") return true;
    if (words[i] == "--log-format" && i + 1 < words.size()) return words[i + 1] == "json";
  }
  const char* variable = std::getenv("MCOMPRESS_LOG_FORMAT");
  return variable != nullptr && std::string_view(variable) == "json";
}

int run(const std::vector<std::string>& words, bool& json_errors) {
  json_errors = wants_json(words);
  Program program;
  const auto first =
      std::find_if(words.begin(), words.end(), [](const std::string& w) { return !w.starts_with('-'); });
  if (contains(words, "--version") && first == words.end()) return print_version(contains(words, "--json"));
  const std::vector<std::string> names = command_names(program);
  if (first != words.end() && !contains(names, *first)) {
    throw error(Exit::kUsage, "unknown command '{}'{}; the commands are {}", *first,
                suggestion(*first, names), fmt::join(names, ", "));
  }
  try {
    if (first == words.end()) {
      parse(program, words);
      throw error(Exit::kUsage, "name a command: {}; see mcompress --help", fmt::join(names, ", "));
    }
    const Arguments arguments = parse_with_config(program, *first, words);
    for (size_t i = 0; i < program.commands.size(); ++i) {
      if (!program.app.got_subcommand(names[i])) continue;
      auto settings = collect_settings(program.sub(names[i]), words, arguments.from_config);
      program.options[i]->inputs = inputs_of(settings);
      return execute(program.commands[i], *program.options[i], std::move(settings));
    }
    throw error(Exit::kUsage, "name a command: {}; see mcompress --help", fmt::join(names, ", "));
  } catch (const CLI::Success& help) {
    return program.app.exit(help);
  } catch (const CLI::ParseError& failure) {
    throw error(Exit::kUsage, "{}; see mcompress --help", failure.what());
  }
}

int fail(Exit code, const std::string& message, bool json) {
  if (json) {
    const nlohmann::ordered_json object = {
        {"type", "error"}, {"exit", static_cast<int>(code)}, {"message", message}};
    write_stderr(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    write_stderr(fmt::format("mcompress: error: {}\n", message));
  }
  return static_cast<int>(code);
}

// Every way to end is turned into an exit code here.
int run_and_report(int argc, char** argv) {
  bool json_errors = false;
  try {
    return run({argv + 1, argv + argc}, json_errors);
  } catch (const Error& failure) {
    return fail(failure.code(), failure.what(), json_errors);
  } catch (const Interrupted& stop) {
    write_stderr(fmt::format("mcompress: stopped by signal {}\n", stop.signal));
    return 128 + stop.signal;
  } catch (const std::bad_alloc&) {
    return fail(Exit::kOutOfMemory, "out of memory", json_errors);
  } catch (const c10::Error& failure) {
    const std::string text = failure.what_without_backtrace();
    if (text.find("can't allocate memory") != std::string::npos)
      return fail(Exit::kOutOfMemory, "out of memory", json_errors);
    return fail(Exit::kInternal, fmt::format("internal error: {}; please report it", text), json_errors);
  } catch (const std::exception& failure) {
    return fail(Exit::kInternal, fmt::format("internal error: {}; please report it", failure.what()),
                json_errors);
  }
}

}  // namespace

}  // namespace mcompress::cli

int main(int argc, char** argv) {
  mcompress::hold_standard_streams();
  mcompress::install_interrupt_handlers();
  int code = mcompress::cli::run_and_report(argc, argv);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    mcompress::write_stderr(
        fmt::format("mcompress: error: cannot write to stdout: {}\n", std::strerror(errno)));
    code = static_cast<int>(mcompress::Exit::kIo);
  }
  // LibTorch's global destructors take a third of the run time of --version and free nothing that lasts.
  ::_exit(code);
}
