#include "mcompress/base/output.h"

#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "test_files.h"

namespace mcompress {
namespace {

using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

Exit code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& failure) {
    return failure.code();
  }
  return Exit::kDone;
}

TEST(OutputFile, AppearsOnlyAfterCommit) {
  const TemporaryFolder folder;
  const std::string content = "weights";
  OutputFile file(folder / "out", false);
  file.write(bytes_of(content));
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  file.commit();
  EXPECT_EQ(read_file(folder / "out"), content);
}

TEST(OutputFile, LeavesNothingWhereItWasNotCommitted) {
  const TemporaryFolder folder;
  { OutputFile(folder / "out", false).write(bytes_of("x")); }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(OutputFile, DoesNotReplaceAFileThatAppearedMeanwhile) {
  const TemporaryFolder folder;
  OutputFile file(folder / "out", false);
  write_file(folder / "out", "other");
  EXPECT_EQ(code_of([&] { file.commit(); }), Exit::kCannotCreate);
  EXPECT_EQ(read_file(folder / "out"), "other");
}

TEST(OutputFile, RefusesASecondWriterOfTheSameTarget) {
  const TemporaryFolder folder;
  const OutputFile first(folder / "out", false);
  EXPECT_EQ(code_of([&] { OutputFile(folder / "out", false); }), Exit::kCannotCreate);
}

TEST(OutputFile, TakesOverTheStubOfAKilledRun) {
  const TemporaryFolder folder;
  write_file(folder / ".out.mcompress-tmp", "half a file");
  OutputFile file(folder / "out", false);
  file.write(bytes_of("all"));
  file.commit();
  EXPECT_EQ(read_file(folder / "out"), "all");
}

TEST(OutputFolder, ReplacesAnExistingFolderInWholeWithForce) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "out");
  write_file(folder / "out/stale", "old");
  OutputFolder output(folder / "out", true);
  write_file(output.path_of("new"), "new");
  output.commit();
  EXPECT_FALSE(std::filesystem::exists(folder / "out/stale"));
  EXPECT_EQ(read_file(folder / "out/new"), "new");
}

TEST(CheckOutput, RefusesWhatCannotWorkBeforeAnyWork) {
  const TemporaryFolder folder;
  write_file(folder / "in", "model");
  const auto check = [&](const std::string& path, bool force, uint64_t bytes) {
    return code_of([&] { check_output(path, OutputKind::kFile, force, {folder / "in"}, bytes); });
  };
  EXPECT_EQ(check(folder / "out", false, 1), Exit::kDone);
  EXPECT_EQ(check(folder / "in", true, 1), Exit::kCannotCreate);       // the input itself
  EXPECT_EQ(check(folder.path(), true, 1), Exit::kCannotCreate);       // a folder
  EXPECT_EQ(check(folder / "no/out", false, 1), Exit::kCannotCreate);  // its folder is missing
  EXPECT_EQ(check(folder / "out", false, UINT64_MAX), Exit::kIo);      // more than the disk has
  write_file(folder / "out", "old");
  EXPECT_EQ(check(folder / "out", false, 1), Exit::kCannotCreate);
  EXPECT_EQ(check(folder / "out", true, 1), Exit::kDone);
}

}  // namespace
}  // namespace mcompress
