#include "train_options.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/output.h"
#include "mcompress/base/sha256.h"
#include "mcompress/model/program.h"
#include "mcompress/report/report.h"

namespace mcompress::cli {

namespace {

constexpr const char* kGroup = "Training";

void check_augmentation(const TrainCommand& command, const at::Tensor& inputs) {
  const AugmentOptions& augment = command.options.augment;
  if (!augment.flip && augment.crop == 0) return;
  if (inputs.dim() != 4)
    throw error(Exit::kUsage, "--flip and --crop are for images, and '{}' has inputs of {} dimensions",
                command.train_data, inputs.dim() - 1);
  const int64_t height = inputs.size(2), width = inputs.size(3);
  if (augment.crop >= std::min(height, width))
    throw error(Exit::kUsage, "--crop {} would move images of {} x {} out of sight; pass less than {}",
                augment.crop, height, width, std::min(height, width));
}

// Throws what measuring the model on these rows would, as far as a few of them and all labels tell.
void check_rows(const torch::jit::Module& program, const Dataset& rows, const std::string& path) {
  constexpr int64_t kFew = 2;
  try {
    const at::Tensor scores = program_forward(program)(rows.batch(0, std::min(kFew, rows.size())));
    if (scores.dim() != 2) throw bad_data("the model's output is not [batch, classes]");
    if (!rows.labels.defined()) return;
    if (rows.labels.min().item<int64_t>() < 0) throw bad_data("the data has negative labels");
    if (rows.labels.max().item<int64_t>() >= scores.size(1))
      throw bad_data("the data has labels outside the model's {} classes", scores.size(1));
  } catch (const Error& failure) {
    throw error(failure.code(), "with '{}': {}", path, failure.what());
  }
}

}  // namespace

void check_training(const torch::jit::Module& program, const TrainCommand& command, const TrainData& rows,
                    const EvalOptions& eval, const std::optional<Dataset>& eval_rows, Report& report) {
  check_rows(program, rows.train, command.train_data);
  if (rows.valid && !command.valid_data.empty()) check_rows(program, *rows.valid, command.valid_data);
  if (eval_rows) check_rows(program, *eval_rows, eval.data_path);
  const auto copy = reload_program(program);
  bool all_frozen = true;
  for (const at::Tensor& parameter : copy.parameters()) all_frozen = all_frozen && !parameter.requires_grad();
  TrainedProgram model(copy, list_layers(copy));
  constexpr int64_t kFew = 2;
  check_trainable(model.task(), rows.train.batch(0, std::min(kFew, rows.train.size())));
  if (all_frozen)
    report.warnings.emplace_back(
        "no parameter of the model asks for gradients, as in a program that was exported for use; all of "
        "them "
        "are trained");
}

void add_train_options(CLI::App& app, TrainCommand& command, double default_rate) {
  TrainOptions& train = command.options;
  train.rate = command.default_rate = default_rate;
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
  add("--lr-schedule", command.schedule,
      "How the rate changes: constant; cosine: down to 0; step: see --step-epochs")
      ->check(CLI::IsMember({"constant", "cosine", "step"}));
  add("--step-epochs", train.step_epochs, "With --lr-schedule step: epochs between two changes")
      ->check(CLI::Range(1, 100'000));
  add("--step-factor", train.step_factor, "With --lr-schedule step: what the rate is multiplied by")
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
  add("--html", command.html, "Write a page with the curves to this file");
  app.add_flag("--resume", command.resume, "Go on from the checkpoint that a stopped run left")
      ->group(kGroup);
}

std::string given_train_option(const TrainCommand& command) {
  const TrainOptions &asked = command.options, plain;
  const std::vector<std::pair<std::string, bool>> used = {
      {"--train-data", !command.train_data.empty()},
      {"--valid-data", !command.valid_data.empty()},
      {"--valid-share", command.valid_share.has_value()},
      {"--epochs", asked.epochs != plain.epochs},
      {"--lr", asked.rate != command.default_rate},
      {"--optimizer", command.optimizer != "sgd"},
      {"--momentum", asked.momentum != plain.momentum},
      {"--weight-decay", asked.weight_decay != plain.weight_decay},
      {"--lr-schedule", command.schedule != "cosine"},
      {"--step-epochs", asked.step_epochs != plain.step_epochs},
      {"--step-factor", asked.step_factor != plain.step_factor},
      {"--warmup-steps", asked.warmup_steps != plain.warmup_steps},
      {"--clip-norm", asked.clip_norm != plain.clip_norm},
      {"--label-smoothing", asked.label_smoothing != plain.label_smoothing},
      {"--flip", asked.augment.flip},
      {"--crop", asked.augment.crop != plain.augment.crop},
      {"--patience", asked.patience != plain.patience},
      {"--resume", command.resume}};
  for (const auto& [name, given] : used) {
    if (given) return name;
  }
  return "";
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
                          bool labelled, Report& report) {
  DataOptions rows = options;
  rows.split = "train";
  rows.limit = command.train_limit;
  TrainData data;
  data.train = timed(report, "read training data", [&] {
    return labelled ? load_dataset(command.train_data, rows) : load_inputs(command.train_data, rows);
  });
  check_augmentation(command, data.train.inputs);
  if (!labelled && command.options.label_smoothing > 0)
    throw error(Exit::kUsage, "--label-smoothing is for labels, and --alpha 1 trains without them");
  if (!command.valid_data.empty()) {
    if (command.valid_share)
      throw error(Exit::kUsage, "--valid-data and --valid-share exclude each other; leave out one");
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
    if (!command.valid_share)
      report.warnings.push_back(
          fmt::format("a tenth of {} training rows is none: no epoch is scored, and the last one is kept; "
                      "pass --valid-data",
                      data.train.size()));
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

void score_epochs(TrainTask& task, TrainedProgram& model, const TrainData& rows, int64_t batch_size) {
  if (!rows.valid) return;
  const Forward forward = [&model](const at::Tensor& input) { return model.evaluate(input); };
  task.score = [forward, &rows, batch_size] {
    return measure_accuracy(forward, *rows.valid, batch_size).top1.value();
  };
}

CheckpointOptions checkpoint_options(const TrainCommand& command, const std::vector<std::string>& hashes,
                                     const std::string& output, const RunOptions& run, const Report& report) {
  std::vector<std::string> all = hashes;
  all.push_back(hash_of_data(command.train_data));
  all.push_back(hash_of_data(command.valid_data));
  const CheckpointOptions options =
      open_checkpoint(output, OutputKind::kFile, command.resume, all, run, report);
  if (!command.html.empty()) {
    std::vector<std::string> others = run.inputs;
    others.insert(others.end(), {output, options.path, output + ".teacher", run.report});
    if (command.html == "-") throw error(Exit::kUsage, "the page of --html cannot go to stdout; name a file");
    check_output(command.html, OutputKind::kFile, run.force, others);
  }
  return options;
}

void warn_of_tracing(const torch::jit::Module& program, Report& report) {
  for (const auto& item : program.named_modules()) {
    const std::string type = item.value.type()->name()->name();
    if (type != "Dropout" && !type.starts_with("BatchNorm")) continue;
    const auto forward = item.value.find_method("forward");
    if (!forward) continue;
    for (const auto* node : forward->graph()->nodes()) {
      if (node->kind() != c10::aten::dropout && node->kind() != c10::aten::batch_norm) continue;
      report.warnings.emplace_back(
          "the model was traced in eval mode: its dropout, and batch normalization that is not folded, stay "
          "as "
          "they are while it is trained");
      return;
    }
  }
}

void write_learning_page(const TrainCommand& command, const std::string& output, const RunOptions& run,
                         const Report& report) {
  if (command.html.empty()) return;
  OutputFile file(command.html, run.force);
  const std::string page = learning_page(report, output);
  file.write(std::as_bytes(std::span(page)));
  file.commit();
}

}  // namespace mcompress::cli
