#include "mcompress/model/layer.h"

#include <ATen/ATen.h>

namespace mcompress {

const char* name_of(LayerKind kind) {
  switch (kind) {
    case LayerKind::kLinear: return "linear";
    case LayerKind::kConv1d: return "conv1d";
    case LayerKind::kConv2d: return "conv2d";
    case LayerKind::kEmbedding: return "embedding";
  }
  return "?";
}

bool is_convolution(LayerKind kind) { return kind == LayerKind::kConv1d || kind == LayerKind::kConv2d; }

WeightIdentity identity_of(const at::Tensor& weight) {
  return {weight.data_ptr(), weight.sizes().vec(), weight.strides().vec()};
}

at::Tensor apply_layer(const Layer& layer, const at::Tensor& input, const at::Tensor& weight,
                       const at::Tensor& bias) {
  if (layer.kind == LayerKind::kEmbedding) return at::embedding(weight, input);
  const std::optional<at::Tensor> added = bias.defined() ? std::optional(bias) : std::nullopt;
  if (layer.kind == LayerKind::kLinear) return at::linear(input, weight, added);
  const Convolution& conv = layer.convolution.value();
  const at::Tensor padded = conv.pad.empty() ? input : at::pad(input, conv.pad, conv.pad_mode);
  const std::vector<int64_t> no_output_padding(conv.stride.size(), 0);
  return at::convolution(padded, weight, added, conv.stride, conv.padding, conv.dilation, false,
                         no_output_padding, conv.groups);
}

}  // namespace mcompress
