#pragma once

#include <optional>
#include <string>

#include <CLI/CLI.hpp>
#include <torch/script.h>

#include "command.h"
#include "mcompress/methods/trained_program.h"
#include "mcompress/methods/trainer.h"
#include "resume.h"

namespace mcompress::cli {

// The settings of commands that train.
struct TrainCommand {
  std::string train_data, valid_data, optimizer = "sgd", schedule = "cosine",
                                      html;  // html: where the page with the curves goes
  std::optional<double> valid_share;
  int64_t train_limit = 0;
  TrainOptions options;
  double default_rate = 0;
  bool resume = false;
};
void add_train_options(CLI::App& app, TrainCommand& command, double default_rate);
// The first of these options that was given though nothing is trained; empty where none was. --train-limit,
// which the environment may hold for all runs, is let pass.
std::string given_train_option(const TrainCommand& command);
TrainOptions train_options(const TrainCommand& command, int64_t batch_size, int64_t seed);

// Training rows and those that each epoch is scored on, which are no part of the former.
struct TrainData {
  Dataset train;
  std::optional<Dataset> valid;
};
TrainData read_train_data(const TrainCommand& command, const DataOptions& options, uint64_t seed,
                          bool labelled, Report& report);

// Throws, before the long work, what training the model or measuring it would throw at their first batch or
// for a label: Error(65), naming the data. Warns where all its parameters are frozen.
void check_training(const torch::jit::Module& program, const TrainCommand& command, const TrainData& rows,
                    const EvalOptions& eval, const std::optional<Dataset>& eval_rows, Report& report);

// Scores each epoch by top-1 on the rows for it, if there are any. Model and rows must outlive the task.
void score_epochs(TrainTask& task, TrainedProgram& model, const TrainData& rows, int64_t batch_size);

// Where the state is kept while a run lasts, beside the output. Refuses (73) one that is there, but for
// --resume and --force, and a path that is none to write to. `hashes` are those of the files beside the
// training data that decide what is trained.
CheckpointOptions checkpoint_options(const TrainCommand& command, const std::vector<std::string>& hashes,
                                     const std::string& output, const RunOptions& run, const Report& report);
// Tells that traced programs have no switch between training and use.
void warn_of_tracing(const torch::jit::Module& program, Report& report);

// Writes the page of --html, with the learning curves, if it is asked for.
void write_learning_page(const TrainCommand& command, const std::string& output, const RunOptions& run,
                         const Report& report);

}  // namespace mcompress::cli
