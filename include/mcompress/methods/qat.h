#pragma once

#include <memory>
#include <vector>

#include "mcompress/methods/static.h"
#include "mcompress/methods/trainer.h"

namespace mcompress {

// Quantization-aware training: layers round their weights and inputs as the static integer layers will, and
// gradients pass the rounding straight through inside the grid.
struct QatOptions {
  StaticOptions grid;
  bool learn_scales = false;    // LSQ (arXiv:1902.08153): scales are trained too
  int64_t freeze_bn_after = 0;  // epochs that batch normalization sees batch statistics; 0: folded at once
  int64_t freeze_observers_after = 5;  // epochs that the ranges of inputs follow the data, by moving average
};

class QatModel {
 public:
  // Takes over `program`, whose tensors are changed by training. Starts from the layers in `made`, which
  // static quantization gave; layers without one are trained in float.
  QatModel(const torch::jit::Module& program, const std::vector<Layer>& layers,
           const std::vector<Followers>& followers, const StaticLayers& made, const QatOptions& options);
  ~QatModel();
  QatModel(QatModel&&) noexcept;

  // What to train; the model must outlive it.
  TrainTask task();

  // The output with rounded weights and inputs, as after training, without gradients.
  at::Tensor evaluate(const at::Tensor& input);

  // The layers as integers, by layer index, and the program that holds what else was trained, in eval mode.
  StaticLayers convert();
  const torch::jit::Module& program();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mcompress
