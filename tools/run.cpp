#include "run.h"

#include <cstdio>
#include <filesystem>

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>
#include <torch/version.h>

#include "mcompress/base/error.h"
#include "mcompress/base/output.h"
#include "mcompress/base/process.h"
#include "mcompress/base/sha256.h"

namespace mcompress::cli {

using nlohmann::ordered_json;

void add_data_options(CLI::App& app, DataArguments& data) {
  app.add_option("--eval-data,--data", data.path,
                 "Labelled images: folder with an IDX pair, or CIFAR-10 binary file");
  app.add_option("--scale", data.options.scale, "Factor for every pixel value")->capture_default_str();
  app.add_option("--mean", data.options.mean, "Mean to subtract, one a channel")->delimiter(',');
  app.add_option("--std", data.options.stddev, "Deviation to divide by, one a channel")->delimiter(',');
  app.add_option("--limit", data.options.limit, "Use the first rows only; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--batch-size", data.batch_size, "Samples in one forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

void add_run_options(CLI::App& app, RunArguments& arguments) {
  app.add_option("--report", arguments.report, "Write a JSON report to this file; -: to stdout");
  app.add_option("-t,--threads", arguments.threads, "CPU threads; 0: as LibTorch chooses")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--force", arguments.force, "Replace existing outputs");
  app.add_flag("--trust-code", arguments.trust_code, "Load a TorchScript file even though it reaches files");
}

void apply(const RunArguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(arguments.threads);
}

void check_report(const RunArguments& arguments) {
  if (arguments.report.empty() || arguments.report == "-") return;
  check_output(arguments.report, OutputKind::kFile, arguments.force, "");
}

void write_report(ordered_json results, const std::string& command, const RunArguments& arguments) {
  if (arguments.report.empty()) return;
  ordered_json report = {{"schema_version", 1},
                         {"tool",
                          {{"name", "mcompress"},
                           {"version", MCOMPRESS_VERSION},
                           {"libtorch", TORCH_VERSION},
                           {"cpu", cpu_name()}}},
                         {"command", command}};
  report.update(results);
  report["threads"] = at::get_num_threads();
  report["peak_rss_bytes"] = peak_rss_bytes();
  const std::string text = report.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  if (arguments.report == "-") {
    std::fputs(text.c_str(), stdout);
    return;
  }
  OutputFile file(arguments.report, arguments.force);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

namespace {

ordered_json share_json(const Share& share) {
  const Interval interval = wilson_interval(share);
  return {{"value", share.value()},
          {"low", interval.low},
          {"high", interval.high},
          {"count", share.count},
          {"total", share.total}};
}

}  // namespace

ordered_json to_json(const Accuracy& accuracy) {
  return {{"top1", share_json(accuracy.top1)},
          {"top5", share_json(accuracy.top5)},
          {"loss", accuracy.loss},
          {"samples_per_second", static_cast<double>(accuracy.top1.total) / accuracy.seconds}};
}

ordered_json describe_file(const std::string& path) {
  return {{"path", path}, {"bytes", std::filesystem::file_size(path)}, {"sha256", sha256_of_path(path)}};
}

}  // namespace mcompress::cli
