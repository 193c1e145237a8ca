#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/group_grid.h"

namespace mcompress {

struct GptqOptions {
  // Its search is weighted by what an error of a channel costs where the others make up for it, 1 / U_jj^2.
  GroupGrid grid = {.search = true};
  bool act_order = true;  // channels in the order of the Hessian's diagonal, the largest first
  bool static_groups =
      true;               // scales are those of the weight as it came, so that groups are channels in order
  double damping = 0.01;  // is added to the Hessian's diagonal, as a share of its mean
};

struct GptqResult {
  GroupCodes weight;
  double loss = 0, rounded_loss = 0;  // sum of dW H dW^T over rows: here, and rounded to nearest
  double damping = 0;                 // that was needed for a factor
  int64_t dead_channels = 0;          // of no input, whose weights become 0
  bool rounded = false;               // rounding to nearest lost less, and was taken
};

// Rounds a weight [rows, channels] channel after channel, each error being made up for by the channels that
// are left (GPTQ, arXiv:2210.17323), in float64. `hessian`: [channels, channels], the sum of x x^T over
// inputs x, in any scale. The same bytes for any number of threads. Throws Error(65) for a Hessian or weight
// that is not finite, and one that no damping up to its mean diagonal makes positive definite.
GptqResult gptq(const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options);

}  // namespace mcompress
