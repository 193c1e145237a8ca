#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

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

// Scales that were moved from what gives channels into the layers that take them (AWQ).
struct Fold {
  std::string from;                 // norm or layer
  std::vector<std::string> layers;  // that take the channels
  // Of these rounded to nearest, without scales and with the best: as loss of RoundedLayer, or behind a norm
  // of a language model the squared error of what the block gives on some windows.
  double plain_loss = 0, loss = 0;
  double power = 0;  // as in ChannelScale
  bool by_weight = false, made = false;
};

// A block of a model once it is rounded.
struct RoundedBlock {
  std::vector<RoundedLayer> layers;
  std::vector<Fold> folds;
  std::map<std::string, at::Tensor> changed;  // float32: other tensors with new values, by their name
};

// The layers of a program once they are rounded.
struct RoundedProgram {
  std::vector<RoundedLayer> layers;  // that the program reached
  std::vector<Fold> folds;
  std::map<std::string, at::Tensor> changed;  // other tensors with new values, by their name
};

// What became of a weight [rows, channels]: name, codes, and how far their values are from it.
RoundedLayer describe_rounded(const std::string& name, const at::Tensor& weight, IntGroup rounded);

// Rounds one layer of this name; `seconds` is the caller's to tell.
RoundedLayer round_layer(const std::string& name, const at::Tensor& weight, const GptqFactor& factor,
                         const GptqOptions& options);

// One line of progress.
std::string line_of(const RoundedLayer& layer, double seconds_left);

// Removes what a run left in the folder, and the folder where it held nothing else.
void remove_rounded_blocks(const std::string& folder);

// What the folder holds of a block; block number `blocks` of a model of so many is the head.
RoundedBlock read_rounded_block(const std::string& folder, int64_t block);

}  // namespace mcompress
