#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/gptq.h"

namespace mcompress {

// What became of one layer.
struct RoundedLayer {
  std::string name;
  IntGroup weight;
  // Squared error of the outputs for one input, mean over inputs; and that of rounding to nearest.
  double loss = 0, rounded_loss = 0;
  double damping = 0, sqnr_db = 0, max_error = 0, seconds = 0;
  int64_t dead_channels = 0;
  bool rounded = false;  // rounding to nearest lost less, and was taken
};

// Rounds one layer of this name; `seconds` is the caller's to tell.
RoundedLayer round_layer(const std::string& name, const at::Tensor& weight, const GptqFactor& factor,
                         const GptqOptions& options);

// One line of progress.
std::string line_of(const RoundedLayer& layer, double seconds_left);

}  // namespace mcompress
