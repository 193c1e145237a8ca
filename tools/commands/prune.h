#pragma once

#include <optional>
#include <string>
#include <vector>

#include "compress_steps.h"
#include "mcompress/base/output.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/prune.h"

namespace mcompress::cli {

// The settings of one `mcompress prune`.
struct PruneCommand : CompressOptions {
  std::optional<double> sparsity;
  std::optional<int64_t> count;
  std::string types = "linear", scope = "layer", criterion = "l1", pattern = "unstructured", store = "dense";
  std::vector<std::string> layer_sparsity;  // REGEX=SHARE
  std::string calib_data;
  int64_t nsamples = 512;

  bool needs_inputs() const { return criterion == "wanda" || criterion == "activation"; }
};

// The two kinds of input: programs and weights without one.
void prune_program(const PruneCommand& options, const RunOptions& run, Report& report);
void prune_checkpoint(const PruneCommand& options, ModelFormat format, const RunOptions& run, Report& report);

// Steps that both share.

// Why a kind of layer is left alone; empty where it is pruned.
std::string obstacle_of(LayerKind kind, const PruneCommand& options);

// A weight that lies over another one in memory, but in another shape, cannot be pruned apart from it.
void keep_overlapping(std::vector<Decision>& plan);

// One mask for each weight.
std::vector<RowMask> choose_masks(const std::vector<PrunableWeight>& weights, const PruneCommand& options,
                                  uint64_t seed);

// Writes the output from the dense model and its bitmask form, both lying in temporary files, as --store
// says, and fills in the report's storage. Returns the form that was written.
std::string write_stored(const PruneCommand& options, const OutputFile& dense, const OutputFile& sparse,
                         OutputFile& file, Report& report);
// The report's storage of a model that stays dense, where a report is wanted.
void describe_dense(const std::string& path, const RunOptions& run, Report& report);

// Fills in what was pruned from the records of the layers, which stand in the order of the plan.
void sum_up(const PruneCommand& options, const std::vector<Decision>& plan, Report& report);

}  // namespace mcompress::cli
