#include "train_options.h"

#include <filesystem>
#include <map>

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/output.h"
#include "mcompress/base/sha256.h"

namespace mcompress::cli {

namespace {

constexpr const char* kGroup = "Training";

// Of a file, a folder, or two files with a comma between.
std::string hash_of_data(const std::string& path) {
  const size_t comma = path.find(',');
  if (path.empty() || std::filesystem::exists(path) || comma == std::string::npos)
    return path.empty() ? "" : sha256_of_path(path);
  return sha256_of_path(path.substr(0, comma)) + sha256_of_path(path.substr(comma + 1));
}

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
                           "data_config"})
    settings.erase(name);
  const std::string text = fmt::format("{}\n{}", fmt::join(hashes, "\n"), settings.dump());
  return sha256_of(std::as_bytes(std::span(text)));
}

}  // namespace

void add_train_options(CLI::App& app, TrainCommand& command) {
  TrainOptions& train = command.options;
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(kGroup);
  };
  add("--train-data", command.train_data,
      "Labelled data to train on, as for --eval-data; of a folder the train split");
  add("--valid-data", command.valid_data,
      "Labelled data that each epoch is scored on; the best epoch is kept. Default: some of the training "
      "rows");
  add_fraction(
      app, "--valid-share", command.valid_share,
      "Share of the training rows that each epoch is scored on, chosen by --seed, and not trained on; 0: "
      "none, and the last epoch is kept; default 10%")
      ->group(kGroup);
  add("--train-limit", command.train_limit, "Train on the first rows only; 0: all")->check(at_least(0));
  add("--epochs", train.epochs, "Times that the training rows are gone through")
      ->check(CLI::Range(1, 100'000));
  add("--lr", train.rate, "Learning rate")->check(at_least(0));
  add("--optimizer", command.optimizer, "sgd or adamw")->check(CLI::IsMember({"sgd", "adamw"}));
  add("--momentum", train.momentum, "Of --optimizer sgd")->check(number_from(0, 1));
  add("--weight-decay", train.weight_decay, "Of weights; biases, scales and normalizations have none")
      ->check(at_least(0));
  add("--schedule", command.schedule,
      "How the rate changes: constant; cosine: down to 0; step: see --step-epochs")
      ->check(CLI::IsMember({"constant", "cosine", "step"}));
  add("--step-epochs", train.step_epochs, "With --schedule step: epochs between two changes")
      ->check(CLI::Range(1, 100'000));
  add("--step-factor", train.step_factor, "With --schedule step: what the rate is multiplied by")
      ->check(number_from(0, 1));
  add("--warmup-steps", train.warmup_steps, "Steps in which the rate grows from 0")->check(at_least(0));
  add("--clip-norm", train.clip_norm, "Most that the norm of all gradients may be; 0: any")
      ->check(at_least(0));
  add("--label-smoothing", train.label_smoothing, "Share of the target that all classes have together")
      ->check(number_from(0, 1));
  app.add_flag("--flip", train.augment.flip, "Turn half of the images left to right")->group(kGroup);
  add("--crop", train.augment.crop, "Move images by up to so many pixels each way")
      ->check(CLI::Range(0, 10'000));
  add("--patience", train.patience, "Epochs without a better score that end the training; 0: never")
      ->check(at_least(0));
  app.add_flag("--resume", command.resume, "Go on from the checkpoint that a stopped run left")
      ->group(kGroup);
}

TrainOptions train_options(const TrainCommand& command, int64_t batch_size, int64_t seed) {
  static const std::map<std::string, Schedule> kSchedules = {
      {"constant", Schedule::kConstant}, {"cosine", Schedule::kCosine}, {"step", Schedule::kStep}};
  TrainOptions options = command.options;
  options.optimizer = command.optimizer == "sgd" ? OptimizerKind::kSgd : OptimizerKind::kAdamW;
  options.schedule = kSchedules.at(command.schedule);
  options.batch_size = batch_size;
  options.seed = static_cast<uint64_t>(seed);
  return options;
}

TrainData read_train_data(const TrainCommand& command, const DataOptions& options, uint64_t seed,
                          Report& report) {
  DataOptions rows = options;
  rows.split = "train";
  rows.limit = command.train_limit;
  TrainData data;
  data.train = timed(report, "read training data", [&] { return load_dataset(command.train_data, rows); });
  if (command.options.augment.flip || command.options.augment.crop > 0) {
    if (data.train.inputs.dim() != 4)
      throw error(Exit::kUsage, "--flip and --crop are for images, and '{}' has inputs of {} dimensions",
                  command.train_data, data.train.inputs.dim() - 1);
  }
  if (!command.valid_data.empty()) {
    rows.split = "test";
    rows.limit = 0;
    data.valid =
        timed(report, "read validation data", [&] { return load_dataset(command.valid_data, rows); });
    return data;
  }
  constexpr double kShare = 0.1;
  const auto held =
      static_cast<int64_t>(command.valid_share.value_or(kShare) * static_cast<double>(data.train.size()));
  if (held == 0) {
    if (command.options.patience > 0)
      throw error(Exit::kUsage,
                  "--patience needs rows to score an epoch on; pass --valid-data or a larger --valid-share");
    return data;
  }
  if (held == data.train.size())
    throw error(Exit::kUsage, "--valid-share leaves none of the {} rows to train on", data.train.size());
  const at::Tensor order = shuffled(data.train.size(), seed);
  const auto part = [&](int64_t begin, int64_t end) {
    return data.train.select(std::get<0>(order.slice(0, begin, end).sort()));  // in their own order
  };
  return {part(held, data.train.size()), part(0, held)};
}

CheckpointOptions checkpoint_options(const TrainCommand& command, const std::string& calib_data,
                                     const std::string& output, const RunOptions& run,
                                     const std::string& model_hash, Report& report) {
  CheckpointOptions options;
  options.path = output + ".checkpoint";
  options.resume = command.resume;
  options.fingerprint = fingerprint_of({model_hash, hash_of_data(command.train_data),
                                        hash_of_data(command.valid_data), hash_of_data(calib_data)},
                                       report);
  if (!run.report.empty() && is_inside(run.report, options.path))
    throw error(Exit::kCannotCreate, "report '{}' is the checkpoint of the run; choose another name",
                run.report);
  if (options.resume && std::filesystem::exists(options.path)) return options;
  if (std::filesystem::exists(options.path) && !run.force) {
    throw error(
        Exit::kCannotCreate,
        "'{}' holds the state of a stopped run; go on from it with --resume, or start anew with --force",
        options.path);
  }
  check_output(options.path, OutputKind::kFile, true, run.inputs);
  if (options.resume)
    report.warnings.push_back(
        fmt::format("there is no '{}' to go on from; the run starts anew", options.path));
  return options;
}

}  // namespace mcompress::cli
