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
  int sweeps = 4;         // of coordinate descent over scales and codes, once all channels are rounded
  double damping = 0.01;  // is added to the Hessian's diagonal, as a share of its mean
};

// A Hessian made ready for all layers that share their inputs; float64, channels in the order of work.
struct GptqFactor {
  at::Tensor hessian;  // with the damping on its diagonal, in its own order
  at::Tensor order;    // int64 [channels]: channel 3 of the work is channel order[3] of the weight
  at::Tensor
      upper;  // U with H^-1 = U^T U, whose row j tells how the channels after j make up for an error of j
  at::Tensor dead;     // bool [channels]: of no input, in its own order
  double damping = 0;  // that was needed for a factor, as a share of the mean
  double ridge = 0;    // the same as it was added
};

// `hessian`: [channels, channels], the sum of x x^T over inputs x, in any scale. Of the options it follows
// act_order and damping; where the damping gives no factor, ten times as much is tried, up to the diagonal's
// mean. Throws Error(65) for a Hessian that is not finite, or that no damping makes positive definite.
GptqFactor factor_hessian(at::Tensor hessian, const GptqOptions& options);

struct GptqResult {
  IntGroup weight;
  double loss = 0, rounded_loss = 0;  // sum of dW H dW^T over rows: here, and rounded to nearest
  bool rounded = false;               // rounding to nearest lost less, and was taken
};

// Rounds a weight [rows, channels] channel after channel, each error being made up for by the channels that
// are left (GPTQ, arXiv:2210.17323), in float64. Weights of dead channels become 0. The same bytes for any
// number of threads. Throws Error(65) for a weight that is not finite.
GptqResult gptq(const at::Tensor& weight, const GptqFactor& factor, const GptqOptions& options);
GptqResult gptq(const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options);

}  // namespace mcompress
