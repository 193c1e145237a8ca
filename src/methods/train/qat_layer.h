#pragma once

#include <optional>

#include "mcompress/methods/trained_program.h"

namespace mcompress {

// What training does at this moment.
struct QatPhase {
  bool training = false;      // whether ranges and statistics may follow the batch
  bool norm_is_live = false;  // whether batch normalization sees batch statistics
  bool observing = false;     // whether the ranges of inputs follow the data
};

// A layer while it is trained. Tensors that are not needed are undefined.
struct QatLayer {
  Layer layer;
  bool opened = false;   // whether it is run by us
  bool rounded = false;  // whether its weights and inputs are
  bool relu = false;
  at::Tensor weight, bias;        // trained; with the batch normalization folded in, but for a live one
  std::optional<BatchNorm> norm;  // live: weight and bias are trained
  int weight_bits = 8;
  bool pairs = false;       // of RowGrid
  at::Tensor ratio;         // [rows]: scale by largest weight, below 8 bits
  at::Tensor weight_scale;  // [rows], trained with LSQ
  std::optional<int> input_bits;
  at::Tensor low, high;    // [1]: range of the inputs
  at::Tensor input_scale;  // [1], trained with LSQ
  int64_t zero_point = 0;  // for it

  at::Tensor run(const at::Tensor& input, const QatPhase& phase);
  StaticLayer convert() const;

 private:
  // Weight and bias as the layer applies them once batch statistics are frozen.
  FloatLayer folded() const;
  // The scales that a weight is rounded with: with LSQ the trained ones, but for what the kernels' sums
  // allow.
  at::Tensor scale_for(const at::Tensor& exact) const;
  InputGrid input_grid() const;
  at::Tensor untrained_scale(const at::Tensor& exact) const;
  at::Tensor round_weight(const at::Tensor& exact) const;
  at::Tensor round_input(const at::Tensor& input, const QatPhase& phase);
  at::Tensor run_live(const at::Tensor& x, const at::Tensor& rounded_weight);
};

// A layer that is trained as it is, in the program's own tensors.
QatLayer float_layer(const Layer& layer);

// A layer that starts from its integer form.
QatLayer rounded_layer(const Layer& layer, const std::optional<BatchNorm>& norm, const StaticLayer& start,
                       const QatOptions& options);

}  // namespace mcompress
