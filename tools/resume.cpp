#include "resume.h"

#include <filesystem>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/sha256.h"

namespace mcompress::cli {

namespace {

// A hash of these hashes and of all settings that decide what is trained.
std::string fingerprint_of(const std::vector<std::string>& hashes, const Report& report) {
  nlohmann::ordered_json settings = to_json(report)["settings"];
  for (const char* name : {"model",
                           "output",
                           "report",
                           "config",
                           "threads",
                           "progress",
                           "log_format",
                           "force",
                           "quiet",
                           "verbose",
                           "resume",
                           "trust_code",
                           "dry_run",
                           "eval_data",
                           "eval_command",
                           "limit",
                           "max_accuracy_drop",
                           "drop",
                           "min_agreement",
                           "min_size_ratio",
                           "max_latency_ratio",
                           "train_data",
                           "valid_data",
                           "calib_data",
                           "data_config",
                           "teacher",
                           "student",
                           "cache",
                           "html",
                           "store",
                           "baseline",
                           "seeds",
                           "windows",
                           "stride",
                           "text_layout",
                           "eval_seqlen",
                           "compute",
                           "max_perplexity_ratio",
                           "format",
                           "max_shard_size"})
    settings.erase(name);
  const std::string text = fmt::format("{}\n{}", fmt::join(hashes, "\n"), settings.dump());
  return sha256_of(std::as_bytes(std::span(text)));
}

}  // namespace

std::string hash_of_data(const std::string& path) {
  const size_t comma = path.find(',');
  if (path.empty() || std::filesystem::exists(path) || comma == std::string::npos)
    return path.empty() ? "" : sha256_of_path(path);
  return sha256_of_path(path.substr(0, comma)) + sha256_of_path(path.substr(comma + 1));
}

CheckpointOptions open_checkpoint(const std::string& output, OutputKind kind, bool resume,
                                  const std::vector<std::string>& hashes, const RunOptions& run,
                                  const Report& report) {
  CheckpointOptions options{output + ".checkpoint", resume, fingerprint_of(hashes, report)};
  if (!run.report.empty() && is_inside(run.report, options.path))
    throw error(Exit::kCannotCreate, "report '{}' is the checkpoint of the run; choose another name",
                run.report);
  if (kind == OutputKind::kFolder && std::filesystem::exists(options.path) &&
      !std::filesystem::is_directory(options.path))
    throw error(Exit::kCannotCreate, "'{}' is a file, where the state of the run would be kept; move it away",
                options.path);
  if (options.resume && std::filesystem::exists(options.path)) return options;
  if (std::filesystem::exists(options.path) && !run.force) {
    throw error(
        Exit::kCannotCreate,
        "'{}' holds the state of a stopped run; go on from it with --resume, or start anew with --force",
        options.path);
  }
  // A folder that is there is the run's own, whose files it replaces.
  if (kind == OutputKind::kFile || !std::filesystem::exists(options.path))
    check_output(options.path, kind, true, run.inputs);
  return options;
}

void warn_of_fresh_start(const CheckpointOptions& checkpoint, Report& report) {
  if (checkpoint.resume && !std::filesystem::exists(checkpoint.path))
    report.warnings.push_back(
        fmt::format("there is no '{}' to go on from; the run starts anew", checkpoint.path));
}

}  // namespace mcompress::cli
