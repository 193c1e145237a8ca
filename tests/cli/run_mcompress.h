#pragma once

#include <cstdlib>
#include <string>

#include <sys/wait.h>

#include "test_files.h"

namespace mcompress::testing {

struct Outcome {
  int exit_code;
  std::string out, err;
};

// Runs the built program through the shell, stdout and stderr apart.
inline Outcome run_mcompress(const std::string& arguments) {
  const TemporaryFolder folder;
  const std::string command = std::string(MCOMPRESS_BINARY) + " " + arguments + " >" + (folder / "out") +
                              " 2>" + (folder / "err") + " </dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(folder / "out"),
          read_file(folder / "err")};
}

inline std::string shipped(const std::string& name) {
  return std::string(MCOMPRESS_TESTS_DIR) + "/data/" + name;
}

}  // namespace mcompress::testing
