#pragma once

#include <map>
#include <string>
#include <vector>

#include <torch/script.h>

#include "mcompress/methods/rounded_layer.h"
#include "mcompress/model/layer.h"

namespace mcompress {

// How the layers of a program are rounded: linear layers and convolutions without groups, whose weight is a
// matrix [rows, channels * places of the kernel].
struct ProgramGptqPlan {
  GptqOptions options;                      // all but the grid
  std::map<std::string, GroupGrid> layers;  // those that are rounded
  bool true_sequential = true;              // each layer sees what the rounded ones before it give
};

// Rounds layers by GPTQ while the program runs once over `batch`, each when it is first used; layers that
// share a weight share what becomes of it. Layers that the program does not reach are missing from the
// result. Throws Error(65) naming the layer for weights and inputs that are not finite.
RoundedProgram gptq_program(const torch::jit::Module& program, const std::vector<Layer>& layers,
                            const ProgramGptqPlan& plan, const at::Tensor& batch);

}  // namespace mcompress
