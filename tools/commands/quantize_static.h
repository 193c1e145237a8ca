#pragma once

#include <map>
#include <string>
#include <vector>

#include "mcompress/methods/static.h"
#include "quantize.h"

namespace mcompress::cli {

using MadeLayers = std::vector<std::optional<StaticLayer>>;

// What a run of static quantization knows, by layer index.
struct StaticRun {
  std::vector<Decision> plan;
  std::vector<LooseNorm> loose;
  FoldedProgram folded;
  MadeLayers made;
  std::map<size_t, LayerTiming> timings;
  std::vector<std::optional<Damage>> damages;

  StaticRun(const torch::jit::Module& program, const QuantizeCommand& options);

 private:
  StaticRun(const torch::jit::Module& program, const std::vector<Layer>& layers,
            const QuantizeCommand& options);
  StaticRun(const torch::jit::Module& program, const std::vector<Layer>& layers,
            const FollowerList& following, std::vector<Decision> decisions);
};

// Stops (65) where folding batch normalization changes what the program computes.
void check_folding(const torch::jit::Module& program, StaticRun& state, const Dataset& data, Report& report);
// Leaves layers alone that the calibration data did not reach.
void keep_unseen(StaticRun& state);

StaticOptions method_options(const QuantizeCommand& options);
// Adds the layers and batch normalizations to the report.
void add_records(const StaticRun& state, const QuantizeCommand& options, Report& report);
std::map<std::string, CompressedWeight> weights_of(const StaticRun& state);

}  // namespace mcompress::cli
