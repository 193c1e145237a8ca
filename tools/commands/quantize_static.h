#pragma once

#include <map>
#include <string>
#include <vector>

#include "mcompress/methods/static.h"
#include "quantize.h"

namespace mcompress::cli {

// What a run of static quantization knows, by layer index.
struct StaticRun {
  std::vector<Decision> plan;
  std::vector<LooseNorm> loose;
  FoldedProgram folded;
  StaticLayers made;
  std::map<size_t, LayerTiming> timings;
  std::vector<std::optional<Damage>> damages;
};
// Lists the layers, decides on each, and folds what follows the chosen ones.
StaticRun start_static(const torch::jit::Module& program, const QuantizeCommand& options);

// Leaves a layer alone for a reason that came up after the plan was made.
void keep(StaticRun& state, size_t layer, const std::string& reason);

// Stops (65) where folding batch normalization changes what the program computes.
void check_folding(const torch::jit::Module& program, StaticRun& state, const Dataset& data, Report& report);
// Leaves layers alone that the calibration data did not reach.
void keep_unseen(StaticRun& state);

// --tune: keeps those of the layers in `uncorrected` in float that cost most, until --max-accuracy-drop holds
// on `data`, and puts the trials into the report.
void tune(const torch::jit::Module& program, StaticRun& state, const StaticLayers& uncorrected,
          const Dataset& calibration, const Dataset& data, const QuantizeCommand& options, Report& report);

StaticOptions method_options(const QuantizeCommand& options);
// Adds the layers and batch normalizations to the report.
void add_records(const StaticRun& state, const QuantizeCommand& options, Report& report);
std::map<std::string, CompressedWeight> weights_of(const StaticRun& state);

}  // namespace mcompress::cli
