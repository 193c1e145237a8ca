#pragma once

#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "command.h"
#include "mcompress/methods/trainer.h"

namespace mcompress::cli {

// The settings of commands that train.
struct TrainCommand {
  std::string train_data, valid_data, optimizer = "sgd", schedule = "cosine";
  std::optional<double> valid_share;
  int64_t train_limit = 0;
  TrainOptions options;
  bool resume = false;
};
void add_train_options(CLI::App& app, TrainCommand& command);
TrainOptions train_options(const TrainCommand& command, int64_t batch_size, int64_t seed);

// Training rows and those that each epoch is scored on, which are no part of the former.
struct TrainData {
  Dataset train;
  std::optional<Dataset> valid;
};
TrainData read_train_data(const TrainCommand& command, const DataOptions& options, uint64_t seed,
                          Report& report);

// Where the state is kept while a run lasts, beside the output. Refuses (73) one that is there, but for
// --resume and --force, and a path that is none to write to.
CheckpointOptions checkpoint_options(const TrainCommand& command, const std::string& calib_data,
                                     const std::string& output, const RunOptions& run,
                                     const std::string& model_hash, Report& report);

}  // namespace mcompress::cli
