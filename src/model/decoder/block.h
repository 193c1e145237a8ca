#pragma once

#include <ATen/core/Tensor.h>

#include "mcompress/model/decoder.h"

namespace mcompress {

// A linear layer; `bias` is undefined where it has none. Computed by oneDNN where LibTorch has it: MKL, which
// at::linear takes in float32, leaves the wider registers of some processors unused.
struct Projection {
  at::Tensor weight, bias;
  // Copies the weight in the layout in which oneDNN computes fastest with inputs of so many rows.
  void pack(int64_t rows);

  at::Tensor operator()(const at::Tensor& x) const;
  at::Tensor silu(const at::Tensor& x) const;                           // of what the layer gives
  at::Tensor add_to(const at::Tensor& sum, const at::Tensor& x) const;  // what the layer gives, and `sum`
};

// The weights of one block, of the computing type.
struct BlockWeights {
  at::Tensor attention_norm, feed_forward_norm, query_norm, key_norm;
  Projection query, key, value, output, gate, up, down;
};

// cos and sin [length, 1, head width / 2] of the angles by which positions are rotated, of the computing
// type.
struct Rotation {
  at::Tensor cosine, sine;
};
Rotation rotation_of(const DecoderConfig& config, int64_t length, at::ScalarType compute);

// x * weight / sqrt(mean(x^2) + epsilon) over the last dimension, computed in float32 (arXiv:1910.07467).
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// Hidden states [n, length, width] behind one block.
at::Tensor block_forward(const DecoderConfig& config, int64_t block, const BlockWeights& weights,
                         const Rotation& rotation, const at::Tensor& hidden);

}  // namespace mcompress
