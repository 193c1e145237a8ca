#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace mcompress {

enum class LayerKind { kLinear, kConv1d, kConv2d, kEmbedding };
const char* name_of(LayerKind kind);
bool is_convolution(LayerKind kind);

// How a convolution slides over its input, by spatial dimension.
struct Convolution {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups = 1;
  std::vector<int64_t> pad;           // around the input before that, as aten::pad takes it; may be empty
  std::string pad_mode = "constant";  // of aten::pad
};

// A layer of a model: one module whose methods do nothing but apply its weight.
struct Layer {
  std::string name;  // "encoder.fc1"
  LayerKind kind = LayerKind::kLinear;
  at::Tensor weight;  // linear [out, in]; conv [out, in / groups, ...]; embedding [rows, columns]
  at::Tensor bias;    // [out], may be undefined
  std::vector<std::string> methods;             // "forward"; a traced module used again has "forward1", ...
  std::string obstacle;                         // why it cannot be replaced; empty where it can
  std::optional<Convolution> convolution = {};  // of a convolution whose settings are constants
};

// What a layer makes of `input` with another weight and bias, which may be undefined.
at::Tensor apply_layer(const Layer& layer, const at::Tensor& input, const at::Tensor& weight,
                       const at::Tensor& bias);

// Which weight a layer uses: equal where two layers use the same memory in the same way. A transposed
// or cut view of another's weight is a weight of its own.
struct WeightIdentity {
  const void* data = nullptr;
  std::vector<int64_t> sizes, strides;
  auto operator<=>(const WeightIdentity&) const = default;
};
WeightIdentity identity_of(const at::Tensor& weight);

}  // namespace mcompress
