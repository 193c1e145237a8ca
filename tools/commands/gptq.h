#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "compress_steps.h"
#include "mcompress/methods/plan.h"
#include "mcompress/methods/rounded_layer.h"

namespace mcompress::cli {

// The settings of one `mcompress gptq`.
struct GptqCommand : CompressOptions {
  int64_t bits = 4, group_size = 128, sweeps = 4;
  std::string group_size_fallback = "error";
  bool symmetric = true, act_order = true, static_groups = true, true_sequential = true, search = true;
  bool head = false, resume = false;
  double damping = 0.01;
  std::vector<std::string> layer_configs;  // "RE=bits:8,group:64"
  std::string format = "gptq";
  uint64_t shard_bytes = 5'000'000'000;

  std::string calib_data, calib_layout = "file", calib_compute = "auto";
  int64_t nsamples = 128, seqlen = 512;
};

void gptq_language(const GptqCommand& options, const RunOptions& run, Report& report);
void gptq_program(const GptqCommand& options, const RunOptions& run, Report& report);

GptqOptions method_options(const GptqCommand& options);

// What the report says of a layer.
GroupRounding rounding_of(const RoundedLayer& layer, int64_t group_size);

// A layer that may be rounded.
struct GroupedLayer {
  std::string name;
  int64_t outputs = 0, inputs = 0;
};

// The grid of each layer that `plan` chose, by name: bits and group size of the command, of the last
// --layer-config that names the layer, and what --group-size-fallback makes of a size that does not divide
// its inputs. Layers that it leaves alone get their reason in the plan. Throws Error(2) naming every layer
// that does not divide where the fallback is "error", and an expression that matches no layer.
std::map<std::string, GroupGrid> choose_grids(const GptqCommand& options,
                                              const std::vector<GroupedLayer>& layers,
                                              std::vector<Decision>& plan);

}  // namespace mcompress::cli
