#pragma once

#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/model/decoder.h"
#include "mcompress/model/int8_matrix.h"

namespace mcompress {

// What layers that have the same inputs are given; the codes where they multiply in 8 bits.
struct LayerInputs {
  at::Tensor x;  // [..., inputs]
  std::optional<Int8Matrix> codes = {};
};

// A linear layer; `bias` is undefined where it has none. Computed by oneDNN where LibTorch has it: MKL, which
// at::linear takes in float32, leaves the wider registers of some processors unused.
struct Projection {
  at::Tensor weight, bias;
  bool rounds_inputs = false;            // to 8 bits a token, symmetrically
  std::optional<Int8Matrix> codes = {};  // where it multiplies in 8 bits, in place of the weight

  // Copies the weight in the layout in which oneDNN computes fastest with inputs of so many rows.
  void pack(int64_t rows);
  void round();  // the weight to 8 bits

  LayerInputs inputs(const at::Tensor& x) const;
  at::Tensor operator()(const LayerInputs& given) const;
  at::Tensor activated(const LayerInputs& given, Activation activation) const;
  // What the layer gives, and `sum`.
  at::Tensor add_to(const at::Tensor& sum, const LayerInputs& given) const;

 private:
  at::Tensor rounded(const at::Tensor& x) const;
  at::Tensor product(const LayerInputs& given) const;
};

// The weights of a norm; `bias` is undefined but for a LayerNorm. Those of kOffsetRms are float32 and have
// the 1 in them.
struct Norm {
  at::Tensor weight, bias;
};

// Over the last dimension, of what the weights are as wide as: RMSNorm (arXiv:1910.07467) in float32, or
// LayerNorm.
at::Tensor normalized(const DecoderConfig& config, const Norm& norm, const at::Tensor& x);

// cap * tanh(x / cap), in place; x where cap is 0.
void cap_values(const at::Tensor& x, double cap);

// The weights of one block, of the computing type.
struct BlockWeights {
  Norm attention_norm, closing_attention_norm, feed_forward_norm, closing_feed_forward_norm, query_norm,
      key_norm;
  Projection query, key, value, output, gate, up, down;
};

// cos and sin [length, 1, rotated width / 2] of the angles by which positions are rotated, of the computing
// type.
struct Rotation {
  at::Tensor cosine, sine;
};
// What Llama 3's scaling divides each frequency by.
std::vector<double> llama3_divisors(const Rope& rope, int64_t rotated_width);
Rotation rotation_of(const Rope& rope, int64_t rotated_width, int64_t length, at::ScalarType compute);

// One block at work on hidden states [n, length, width], in the steps between which its stages lie.
struct BlockPass {
  const DecoderConfig& config;
  int64_t block;
  const BlockWeights& weights;
  const Rotation& rotation;

  at::Tensor attention_inputs(const at::Tensor& hidden) const;
  at::Tensor attention(const at::Tensor& x) const;  // [n, length, heads * head width], for the output layer
  at::Tensor add_attention(const at::Tensor& hidden, const at::Tensor& mixed) const;
  at::Tensor feed_forward_inputs(const at::Tensor& hidden) const;
  at::Tensor feed_forward(const at::Tensor& x) const;  // [n, length, inner], for the down layer
  at::Tensor add_feed_forward(const at::Tensor& hidden, const at::Tensor& inner) const;

 private:
  at::Tensor add(const Projection& layer, const Norm& closing, const at::Tensor& sum,
                 const at::Tensor& x) const;
};

}  // namespace mcompress
