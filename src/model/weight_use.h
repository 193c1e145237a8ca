#pragma once

#include <optional>

#include <torch/csrc/jit/ir/ir.h>

#include "mcompress/model/layer.h"

namespace mcompress {

// How a node applies a weight: its kind, and which of its operands are what.
struct Application {
  LayerKind kind;
  size_t input, weight;
  std::optional<size_t> bias;
};

// The one node of a module's method that applies the module's own weight; nothing where there is none, or
// where the weight has other uses.
struct WeightUse {
  const torch::jit::Node* node;
  Application application;
};
std::optional<WeightUse> find_weight_use(const torch::jit::Graph& graph);

}  // namespace mcompress
