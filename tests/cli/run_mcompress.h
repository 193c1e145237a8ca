#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/wait.h>

#include "cli/report_schema.h"
#include "test_files.h"

namespace mcompress::testing {

constexpr const char* kFashionTest = "/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz";
constexpr const char* kFashion = "/usr/share/datasets/fashion-mnist";

struct Outcome {
  int exit_code;
  std::string out, err;
};

inline std::string shipped(const std::string& name) {
  return std::string(MCOMPRESS_TESTS_DIR) + "/data/" + name;
}
inline std::string recipe(const std::string& name) {
  return std::string(MCOMPRESS_TESTS_DIR) + "/../configs/" + name;
}
inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Runs `before mcompress arguments` through the shell, stdout and stderr apart.
inline Outcome run_mcompress(const std::string& arguments, const std::string& before = "") {
  const TemporaryFolder folder;
  const std::string command = before + " " + MCOMPRESS_BINARY + " " + arguments + " >" + (folder / "out") +
                              " 2>" + (folder / "err") + " </dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(folder / "out"),
          read_file(folder / "err")};
}

// A refusal: what is run, its exit code, and words of its message.
struct Case {
  std::string arguments;
  int exit_code;
  std::string words;
};

// Runs all; nothing is printed on stdout, and no file appears at `absent`.
inline void expect_all(const std::vector<Case>& cases, const std::string& absent = "") {
  for (const Case& c : cases) {
    const Outcome run = run_mcompress(c.arguments);
    EXPECT_EQ(run.exit_code, c.exit_code) << c.arguments << "\n" << run.err;
    EXPECT_TRUE(contains(run.err, c.words)) << c.arguments << "\n" << run.err;
    EXPECT_EQ(run.out, "") << c.arguments;
    EXPECT_TRUE(absent.empty() || !std::filesystem::exists(absent)) << c.arguments;
  }
}

// Runs with --report -, expects `exit_code`, and returns the report after checking it against the schema.
inline nlohmann::json report_of(const std::string& arguments, int exit_code = 0,
                                const std::string& before = "") {
  const Outcome run = run_mcompress(arguments + " --report -", before);
  EXPECT_EQ(run.exit_code, exit_code) << run.err;
  if (run.exit_code != exit_code) return {};
  EXPECT_EQ(schema_violations(run.out), "");
  return nlohmann::json::parse(run.out);
}

// A layer's line in a report; null where there is none.
inline nlohmann::json layer_named(const nlohmann::json& report, const std::string& name) {
  for (const nlohmann::json& layer : report["layers"]) {
    if (layer["name"] == name) return layer;
  }
  return {};
}

// The folder of real models and data, or empty where it is not set.
inline std::string test_data() {
  const char* path = std::getenv("MCOMPRESS_TEST_DATA");
  return path == nullptr ? "" : path;
}

}  // namespace mcompress::testing
