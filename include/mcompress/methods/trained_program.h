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

// A program whose tensors are changed by training, in place. Weights that are zero at the start stay zero, as
// pruning left them, but for those of a layer that has no other.
class TrainedProgram {
 public:
  // Trains all layers in float, batch normalization with batch statistics. `observed` names modules whose
  // outputs are kept; see observe_outputs() for what it throws.
  TrainedProgram(const torch::jit::Module& program, const std::vector<Layer>& layers,
                 const std::vector<std::string>& observed = {});

  // Starts from the layers in `made`, which static quantization gave; layers without one are trained in
  // float.
  TrainedProgram(const torch::jit::Module& program, const std::vector<Layer>& layers,
                 const std::vector<Followers>& followers, const StaticLayers& made,
                 const QatOptions& options);
  ~TrainedProgram();
  TrainedProgram(TrainedProgram&&) noexcept;

  // What to train; the model must outlive it.
  TrainTask task();

  // The output as after training, with rounded weights and inputs, without gradients.
  at::Tensor evaluate(const at::Tensor& input);

  // The outputs of the observed modules in the last forward pass.
  const std::vector<at::Tensor>& observed() const;

  // The layers as integers, by layer index, and the program that holds what else was trained, in eval mode.
  StaticLayers convert();
  const torch::jit::Module& program();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mcompress
