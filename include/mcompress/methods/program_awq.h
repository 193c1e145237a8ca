#pragma once

#include <map>
#include <string>
#include <vector>

#include <torch/script.h>

#include "mcompress/methods/rounded_layer.h"
#include "mcompress/model/layer.h"

namespace mcompress {

// How the layers of a program are rounded by AWQ: linear layers and convolutions without groups.
struct ProgramAwqPlan {
  std::map<std::string, GroupGrid>
      layers;           // those that are rounded; where a grid searches, ranges are clipped
  int64_t points = 20;  // powers that are tried for the scales of a layer's inputs
};

// Rounds layers by AWQ (arXiv:2306.00978) with what the float program gives them for `batch`. Where linear
// layers alone take what a layer normalization gives, or one takes what another linear layer gives, at most
// through a ReLU, their channels get the scale that loses least on the Hessian, and the norm, or the rows and
// the bias of the other layer, make up for it. Layers that share a weight share what becomes of it, without
// scales. Throws as gptq_program(). Memory: the Hessians of all layers.
RoundedProgram awq_program(const torch::jit::Module& program, const std::vector<Layer>& layers,
                           const ProgramAwqPlan& plan, const at::Tensor& batch);

}  // namespace mcompress
