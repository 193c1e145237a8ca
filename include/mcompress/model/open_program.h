#pragma once

#include <functional>
#include <string>
#include <vector>

#include <torch/script.h>

#include "mcompress/model/layer.h"

namespace mcompress {

// Why a layer cannot become a function; empty where it can.
std::string obstacle_to_open(const Layer& layer);

// Takes the place of a layer, of the batch normalization and of the ReLU that follow it: input in, output
// out.
using LayerFunction = std::function<at::Tensor(size_t layer, const at::Tensor& input)>;

// A copy of `program`, sharing its tensors, that hands the output of each module with one of these names to
// the LayerFunction of the OpenProgram made from it, the first as layer `first`. What the function returns
// takes the output's place. Throws Error(65) naming a module that there is none of, or that gives no tensor.
torch::jit::Module observe_outputs(const torch::jit::Module& program, const std::vector<std::string>& modules,
                                   size_t first);

// A program in which some layers are functions of ours: for calibration, trials and training.
class OpenProgram {
 public:
  // `opened` tells by index which layers; they must have no obstacle to it. Those in `folded` take over what
  // follows them. All tensors are shared with `program`.
  OpenProgram(const torch::jit::Module& program, const std::vector<Layer>& layers,
              const std::vector<bool>& opened, const std::vector<bool>& folded);

  // Runs it, with gradients where the caller wants them. Throws Error(65) as program_forward() does.
  at::Tensor run(const at::Tensor& input, const LayerFunction& function);

  torch::jit::Module& program() { return program_; }

 private:
  torch::jit::Module program_;
};

}  // namespace mcompress
