#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include <torch/script.h>

#include "compress_steps.h"
#include "mcompress/base/output.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/prune.h"
#include "models.h"
#include "teacher.h"
#include "train_options.h"

namespace mcompress::cli {

// The settings of one `mcompress prune`.
struct PruneCommand : CompressOptions {
  std::optional<double> sparsity;
  std::optional<int64_t> count;
  std::string types = "linear", scope = "layer", criterion = "l1", pattern = "unstructured", store = "dense";
  std::vector<std::string> layer_sparsity;  // REGEX=SHARE
  std::string calib_data;
  int64_t nsamples = 512;
  std::string sweep;  // FROM:TO:STEP
  bool per_layer = false;

  bool finetune = false;
  std::string schedule = "one-shot";
  std::optional<int64_t> steps;
  TrainCommand training;  // its --html is the sweep's too
  TeacherCommand tutoring;

  bool needs_inputs() const { return criterion == "wanda" || criterion == "activation"; }
};

// The two kinds of input: programs and weights without one.
void prune_program(const PruneCommand& options, const RunOptions& run, Report& report);
void prune_checkpoint(const PruneCommand& options, ModelFormat format, const RunOptions& run, Report& report);

// The weights of a program that are pruned, those that layers share once.
struct ProgramWeights {
  std::vector<PrunableWeight> weights;
  std::vector<at::Tensor> tensors;
};
// Prunes them where they lie.
void prune_weights(const ProgramWeights& chosen, const PruneCommand& options, uint64_t seed);

// What is wrong with the options of --finetune. Throws Error(2).
void check_finetune(const PruneCommand& options);

// Training after, or while, weights are pruned.
class Finetuning {
 public:
  Finetuning(const PruneCommand& options, const RunOptions& run, Report& report);  // reads the data
  // The teacher and the checkpoint, once the model is known to be fit; the hash is the model's.
  void prepare(const torch::jit::Module& program, const BackgroundHash& hash);
  // Prunes and trains the program where it lies.
  void train(const torch::jit::Module& program, const ProgramWeights& chosen);
  // Once the output is in place: the page of --html, and what was kept for --resume goes.
  void finish();

 private:
  const PruneCommand& options_;
  const RunOptions& run_;
  Report& report_;
  TrainData rows_;
  std::optional<Teacher> teacher_;
  CheckpointOptions checkpoint_;
};

// The sparsities of --sweep FROM:TO:STEP. Throws Error(2).
std::vector<double> read_sweep(const std::string& text);

// Fills in the report's sweep: each sparsity of --sweep is tried on the program, whose weights are put back.
// `layers` names all its layers; `data` may be null.
void sweep_program(const torch::jit::Module& program, const std::set<std::string>& layers,
                   const ProgramWeights& chosen, const Dataset* data, const PruneCommand& options,
                   const RunOptions& run, Report& report);

// Steps that both share.

// Why a kind of layer is left alone; empty where it is pruned.
std::string obstacle_of(LayerKind kind, const PruneCommand& options);

// One mask for each weight, for a part of the amount that is asked for.
std::vector<RowMask> choose_masks(const std::vector<PrunableWeight>& weights, const PruneCommand& options,
                                  uint64_t seed, double part = 1);

// Writes the output from the dense model and its bitmask form, both lying in temporary files, as --store
// says, and fills in the report's storage. Returns the form that was written.
std::string write_stored(const PruneCommand& options, const OutputFile& dense, const OutputFile& sparse,
                         OutputFile& file, Report& report);
// That a model has no bitmask form is an error (65), but for --store auto, which then means dense.
void check_auto(const PruneCommand& options, const std::string& obstacle, Report& report);
// Most bytes that lie on the disk while the output is written: with a store also its dense and bitmask forms.
uint64_t bytes_to_write(const PruneCommand& options, uint64_t dense_bytes);
// The report's storage of a model that stays dense, where a report is wanted.
void describe_dense(const std::string& path, const RunOptions& run, Report& report);

// Fills in what was pruned from the records of the layers, which stand in the order of the plan.
void sum_up(const PruneCommand& options, const std::vector<Decision>& plan, Report& report);

}  // namespace mcompress::cli
