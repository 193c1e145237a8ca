#pragma once

#include <optional>
#include <vector>

#include <torch/script.h>

#include "mcompress/model/compressed_weight.h"
#include "mcompress/model/layer.h"

namespace mcompress {

// A layer of integers, with the batch normalization that followed it folded in.
struct StaticLayer {
  IntChannel weight;
  std::optional<InputGrid> input;  // without one, inputs stay as they are
  at::Tensor bias;                 // float32 [rows], may be undefined
  bool relu = false;               // whether it ends with the ReLU that followed
  at::Tensor stretch = {};         // [rows]: what correct_biases() multiplied the scale by; may be undefined
};

using StaticLayers = std::vector<std::optional<StaticLayer>>;  // by layer index, empty where one stays float

// The input as the layer sees it: rounded half up onto the grid, float32.
at::Tensor round_input(const InputGrid& grid, const at::Tensor& input);

// The layer's output, computed in float32 from the integers: what every runtime gives, up to rounding.
at::Tensor run_static(const Layer& layer, const StaticLayer& made, const at::Tensor& input);

// The bits of a layer's weights, and of its inputs unless they stay float.
struct StaticBits {
  int weight = 8;
  std::optional<int> input = 8;
};

// The runtime of one layer where `wanted` was asked for. Sums that could pass 32 bits, or the 16 bits of
// CPUs without VNNI, are computed in float (kPortable), and so are layers whose inputs stay float.
Runtime static_runtime_of(const Layer& layer, const StaticBits& bits, Runtime wanted);

// Whether its kernel adds up pairs of products in 16 bits on CPUs without VNNI, which codes must allow for.
bool needs_pairs(const Layer& layer, const StaticBits& bits, Runtime wanted);

// A copy of `program` with integer layers in the place of those that have one in `made`, by layer index. What
// they took over is gone from the copy. Codes of fewer than 8 bits are stored as a stream of bits and become
// int8 when the file is loaded. As with replace_layers(), the copy is for save_program().
torch::jit::Module replace_static(const torch::jit::Module& program, const std::vector<Layer>& layers,
                                  const StaticLayers& made, Runtime runtime);

}  // namespace mcompress
