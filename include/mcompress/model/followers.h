#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <torch/script.h>

#include "mcompress/model/layer.h"

namespace mcompress {

// A batch normalization as it computes in eval mode: (x - mean) / sqrt(variance + eps) * weight + bias.
struct BatchNorm {
  std::string name;                         // "layer1.0.bn1"
  at::Tensor weight, bias, mean, variance;  // float32 [channels]
  double eps = 0, momentum = 0;
};

// What a program does with a layer's output before anything else sees it.
struct Followers {
  std::optional<BatchNorm> norm;
  bool relu = false;
};

// A batch normalization that follows no layer, and why it cannot become part of one.
struct LooseNorm {
  std::string name, reason;
  uint64_t bytes = 0;  // of its parameters and statistics
};

struct FollowerList {
  std::vector<Followers> of_layer;  // by layer index
  std::vector<LooseNorm> loose;
};

// Finds them in a scripted or traced program. A layer that is used more than once has none.
FollowerList find_followers(const torch::jit::Module& program, const std::vector<Layer>& layers);

// By layer index, the layer that alone is given what this one gives, at most through a ReLU, where both are
// used once.
std::vector<std::optional<size_t>> find_takers(const torch::jit::Module& program,
                                               const std::vector<Layer>& layers);

// A layer normalization over the last dimension whose output linear layers alone are given, all used once.
struct NormTakers {
  std::string name;            // "blocks.0.ln_1"
  at::Tensor weight, bias;     // [channels]; there may be no bias
  std::vector<size_t> takers;  // by layer index
};
// Follows outputs into the modules that they are handed to.
std::vector<NormTakers> find_norm_takers(const torch::jit::Module& program, const std::vector<Layer>& layers);

// A copy of `program` that leaves out what follows the layers with these indices, and that holds other
// modules in the place of layers where `replacements` names them.
torch::jit::Module drop_followers(const torch::jit::Module& program, const std::vector<Layer>& layers,
                                  const std::vector<bool>& chosen,
                                  const std::map<std::string, torch::jit::Module>& replacements);

}  // namespace mcompress
