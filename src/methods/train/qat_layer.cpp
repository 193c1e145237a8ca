#include "qat_layer.h"

#include <limits>

#include <ATen/ATen.h>

#include "layer_gradient.h"
#include "mcompress/methods/grid.h"
#include "mcompress/model/open_program.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

constexpr double kLeastScale = 1e-8;  // of trained scales
constexpr float kLeastFloat = std::numeric_limits<float>::min();

at::Tensor leaf(const at::Tensor& value) { return value.detach().clone().requires_grad_(true); }

// What a normalization multiplies each channel by, with the running statistics.
at::Tensor factor_of(const BatchNorm& norm) { return norm.weight * (norm.variance + norm.eps).rsqrt(); }

}  // namespace

FloatLayer QatLayer::folded() const {
  if (!norm) return {weight, bias};
  const at::Tensor factor = factor_of(*norm);
  const at::Tensor mean = bias.defined() ? norm->mean - bias : norm->mean;
  return {weight * by_rows(factor, weight), norm->bias - mean * factor};
}

at::Tensor QatLayer::untrained_scale(const at::Tensor& exact) const {
  const at::Tensor values = exact.detach();
  constexpr int kByte = 8;
  const at::Tensor scale =
      weight_bits == kByte ? row_scales(values, {.pairs = pairs}) : ratio * values.abs().flatten(1).amax(1);
  return scale.clamp_min(kLeastFloat);
}

at::Tensor QatLayer::scale_for(const at::Tensor& exact) const {
  if (!weight_scale.defined()) return untrained_scale(exact);
  const at::Tensor scale = weight_scale.clamp_min(kLeastScale);
  return pairs ? at::maximum(scale, untrained_scale(exact)) : scale;
}

at::Tensor QatLayer::round_weight(const at::Tensor& exact) const {
  const auto [lowest, highest] = code_range(weight_bits);
  const at::Tensor scale = scale_for(exact);
  if (weight_scale.defined()) return lsq_round(exact, scale, 0, lowest, highest);
  return at::fake_quantize_per_channel_affine(exact, scale, at::zeros({scale.numel()}, at::kInt), 0, lowest,
                                              highest);
}

InputGrid QatLayer::input_grid() const {
  if (!input_scale.defined()) return grid_of({low.item<double>(), high.item<double>()}, *input_bits);
  return {std::max(input_scale.item<double>(), kLeastScale), zero_point, *input_bits};
}

at::Tensor QatLayer::round_input(const at::Tensor& input, const QatPhase& phase) {
  if (input_scale.defined()) {
    const int64_t top = (InputGrid{.bits = *input_bits}).top();
    return lsq_round(input, input_scale.clamp_min(kLeastScale), zero_point, 0, top);
  }
  if (phase.training && phase.observing) {
    const auto [least, largest] = input.detach().aminmax();
    low.add_(least.clamp_max(0).view({1}) - low, kMovingAverageWeight);
    high.add_(largest.clamp_min(0).view({1}) - high, kMovingAverageWeight);
  }
  const InputGrid grid = input_grid();
  return at::fake_quantize_per_tensor_affine(input, grid.scale, grid.zero_point, 0, grid.top());
}

// `rounded_weight` has the running statistics folded in; they are taken out again, and the batch's put in.
at::Tensor QatLayer::run_live(const at::Tensor& x, const at::Tensor& rounded_weight) {
  const at::Tensor factor = by_rows(factor_of(*norm).detach(), weight);
  const at::Tensor off = factor == 0;  // a channel that the normalization switches off
  const at::Tensor unfolded = at::where(off, weight, rounded_weight / at::where(off, 1, factor));
  const at::Tensor y = apply_layer_for_training(layer, x, unfolded, bias);
  return at::batch_norm(y, norm->weight, norm->bias, norm->mean, norm->variance, true, norm->momentum,
                        norm->eps, false);
}

at::Tensor QatLayer::run(const at::Tensor& input, const QatPhase& phase) {
  if (!rounded) return apply_layer_for_training(layer, input, weight, bias);
  const at::Tensor x = input_bits ? round_input(input, phase) : input;
  const FloatLayer exact = folded();
  const at::Tensor rounded_weight = round_weight(exact.weight);
  const bool live = norm && phase.training && phase.norm_is_live;
  const at::Tensor y =
      live ? run_live(x, rounded_weight) : apply_layer_for_training(layer, x, rounded_weight, exact.bias);
  return relu ? y.relu() : y;
}

StaticLayer QatLayer::convert() const {
  const FloatLayer exact = folded();
  const at::Tensor scale = scale_for(exact.weight).detach();
  std::optional<InputGrid> input;
  if (input_bits) input = input_grid();
  const at::Tensor kept_bias = exact.bias.defined() ? exact.bias.detach().clone() : at::Tensor();
  return {round_rows(exact.weight.detach(), scale, weight_bits), input, kept_bias, relu};
}

QatLayer float_layer(const Layer& layer) {
  QatLayer result;
  result.layer = layer;
  result.opened = obstacle_to_open(layer).empty();
  result.weight = layer.weight;
  result.bias = layer.bias;
  return result;
}

QatLayer rounded_layer(const Layer& layer, const std::optional<BatchNorm>& norm, const StaticLayer& start,
                       const QatOptions& options) {
  QatLayer result;
  result.layer = layer;
  result.opened = result.rounded = true;
  result.relu = start.relu;
  result.weight_bits = start.weight.bits;
  at::Tensor folded = fold(layer, norm).weight;
  if (start.stretch.defined())
    folded = folded * by_rows(start.stretch, folded);  // so that it has these codes
  const bool live = options.freeze_bn_after > 0 && norm;
  if (live) {
    result.norm = norm;
    result.norm->weight = leaf(norm->weight);
    result.norm->bias = leaf(norm->bias);
    result.norm->mean = norm->mean.detach().clone();
    result.norm->variance = norm->variance.detach().clone();
  }
  result.weight = leaf(live ? layer.weight : folded);
  const at::Tensor bias = live ? layer.bias : start.bias;
  if (bias.defined()) result.bias = leaf(bias);
  result.ratio = start.weight.scale / folded.abs().flatten(1).amax(1).clamp_min(kLeastFloat);
  if (start.input) {
    const InputGrid& grid = *start.input;
    const auto zero = static_cast<double>(grid.zero_point), top = static_cast<double>(grid.top());
    result.input_bits = grid.bits;
    result.low = at::full({1}, -zero * grid.scale, at::kFloat);
    result.high = at::full({1}, (top - zero) * grid.scale, at::kFloat);
    result.zero_point = grid.zero_point;
  }
  result.pairs = needs_pairs(layer, {result.weight_bits, result.input_bits}, options.grid.runtime);
  if (options.learn_scales) {
    result.weight_scale = leaf(start.weight.scale);
    if (start.input) result.input_scale = leaf(at::full({1}, start.input->scale, at::kFloat));
  }
  return result;
}

}  // namespace mcompress
