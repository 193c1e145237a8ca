#include <csignal>
#include <cstdio>
#include <new>

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/progress.h"
#include "run.h"

namespace mcompress::cli {

namespace {

int fail(Exit code, const std::string& message) {
  fmt::print(stderr, "mcompress: error: {}\n", message);
  return static_cast<int>(code);
}

// Parses and runs; every way to end but a signal is turned into an exit code here.
int run(int argc, char** argv) {
  CLI::App app("Make neural networks smaller and measure what it cost", "mcompress");
  app.set_version_flag("--version", "mcompress " MCOMPRESS_VERSION);
  app.require_subcommand(0, 1);
  const std::vector<Command> commands = all_commands();
  for (const Command& command : commands)
    command.add_options(*app.add_subcommand(command.name, command.summary));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& stop) {
    if (stop.get_exit_code() == 0) return app.exit(stop);
    return fail(Exit::kUsage, fmt::format("{}; see mcompress --help", stop.what()));
  }
  for (const Command& command : commands) {
    if (app.got_subcommand(command.name)) return command.run();
  }
  return fail(Exit::kUsage, "name a command; see mcompress --help");
}

int run_and_report(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& failure) {
    return fail(failure.code(), failure.what());
  } catch (const Interrupted& stop) {
    fmt::print(stderr, "mcompress: stopped by signal {}\n", stop.signal);
    return 128 + stop.signal;
  } catch (const std::bad_alloc&) {
    return fail(Exit::kOutOfMemory, "out of memory");
  } catch (const c10::Error& failure) {
    return fail(Exit::kInternal, fmt::format("internal error: {}", failure.what_without_backtrace()));
  } catch (const std::exception& failure) {
    return fail(Exit::kInternal, fmt::format("internal error: {}", failure.what()));
  }
}

}  // namespace

}  // namespace mcompress::cli

int main(int argc, char** argv) {
  mcompress::install_interrupt_handlers();
  mcompress::set_progress_style(mcompress::ProgressStyle::kAuto);
  const int code = mcompress::cli::run_and_report(argc, argv);
  // LibTorch's global destructors take a third of the run time of --version and free nothing that lasts.
  std::fflush(stdout);
  ::_exit(code);
}
