#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/group_grid.h"

namespace mcompress {

// Activation-aware rounding (AWQ, arXiv:2306.00978): input channels that are large are rounded on a finer
// grid, by scales that what comes before the layer makes up for. All losses are sums of dW H dW^T over rows,
// where H, [channels, channels], is the mean of x x^T over inputs.

// One scale of all channels, float32 [channels] around 1: mean|x|^power, by the mean of |w| in its group to
// the power of 1 - power where `by_weight`.
struct ChannelScale {
  at::Tensor scale;
  double power = 0;
  bool by_weight = false;
  double loss = 0;
};

// Scales that were tried, the best first, and the loss without any.
struct ScaleSearch {
  double plain_loss = 0;
  std::vector<ChannelScale> found;
};

// Tries `points` powers from 0 up for weights [rows, channels] that share their inputs, each rounded to
// nearest on its grid; `mean_inputs`: of |x|, float32 [channels].
ScaleSearch search_scales(const std::vector<at::Tensor>& weights, const std::vector<GroupGrid>& grids,
                          const at::Tensor& hessian, const at::Tensor& mean_inputs, int64_t points);

// What the weight becomes where it is rounded to nearest with that scale, which is taken out again.
at::Tensor rounded_with_scale(const at::Tensor& weight, const at::Tensor& scale, const GroupGrid& grid);

// Rounds with the range of each group narrowed by up to 45 % where its part of H says that less is lost.
IntGroup round_clipped(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& hessian);

// Rounds to nearest, or where `clip` says so as round_clipped(); whether the grid searches does not matter.
IntGroup round_for_awq(const at::Tensor& weight, GroupGrid grid, const at::Tensor& hessian, bool clip);

// Of a weight that became `rounded`, and of one that is rounded to nearest.
double loss_of(const at::Tensor& weight, const at::Tensor& rounded, const at::Tensor& hessian);
double nearest_loss(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& hessian);

}  // namespace mcompress
