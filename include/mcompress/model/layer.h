#pragma once

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace mcompress {

enum class LayerKind { kLinear, kConv1d, kConv2d, kEmbedding };
const char* name_of(LayerKind kind);

// A layer of a model: one module whose methods do nothing but apply its weight.
struct Layer {
  std::string name;  // "encoder.fc1"
  LayerKind kind = LayerKind::kLinear;
  at::Tensor weight;  // linear [out, in]; conv [out, in / groups, ...]; embedding [rows, columns]
  at::Tensor bias;    // [out], may be undefined
  std::vector<std::string> methods;  // "forward"; a traced module used again has "forward1", ...
  std::string obstacle;              // why it cannot be replaced; empty where it can
};

}  // namespace mcompress
