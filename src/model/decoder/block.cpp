#include "block.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace mcompress {

namespace {

// The frequencies 1 / theta^(2i / width), scaled as modeling_rope_utils.py of transformers does. Dynamic
// scaling begins beyond the positions that the model was trained on.
std::vector<double> inverse_frequencies(const DecoderConfig& config) {
  const Rope& rope = config.rope;
  const auto width = static_cast<double>(config.head_width);
  const auto original = static_cast<double>(rope.original_positions);
  std::vector<double> frequencies;
  for (int64_t i = 0; i < config.head_width / 2; ++i)
    frequencies.push_back(1 / std::pow(rope.theta, 2 * static_cast<double>(i) / width));
  for (size_t i = 0; i < rope.divisors.size(); ++i) frequencies[i] /= rope.divisors[i];
  if (rope.scaling == RopeScaling::kLinear) {
    for (double& frequency : frequencies) frequency /= rope.factor;
  }
  if (rope.scaling == RopeScaling::kLlama3) {
    for (double& frequency : frequencies) {
      const double wave = 2 * M_PI / frequency;
      const double smooth =
          (original / wave - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
      const double kept =
          std::clamp(smooth, 0.0, 1.0);  // 0: long waves, stretched; 1: short ones, as they are
      frequency *= (1 - kept) / rope.factor + kept;
    }
  }
  if (rope.scaling == RopeScaling::kYarn) {
    const auto dimension_of = [&](double rotations) {
      return width * std::log(original / (rotations * 2 * M_PI)) / (2 * std::log(rope.theta));
    };
    double low = dimension_of(rope.beta_fast), high = dimension_of(rope.beta_slow);
    if (rope.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, width - 1);
    if (low == high) high += 0.001;
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const double stretched = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      frequencies[i] *= stretched / rope.factor + 1 - stretched;
    }
  }
  return frequencies;
}

// Rotates [n, length, heads, width] by halves: (a, b) to (a cos - b sin, b cos + a sin).
at::Tensor rotated(const at::Tensor& x, const Rotation& rotation) {
  const std::vector<at::Tensor> halves = x.chunk(2, -1);
  const at::Tensor &a = halves[0], &b = halves[1];
  return at::cat({a * rotation.cosine - b * rotation.sine, b * rotation.cosine + a * rotation.sine}, -1);
}

// -infinity where token `first` + i may not look at token `from` + j, which is ahead, or `window` or more
// back; else 0.
at::Tensor mask_of(int64_t first, int64_t from, int64_t end, int64_t window) {
  const at::Tensor back = at::arange(first, end).unsqueeze(1) - at::arange(from, end);
  at::Tensor hidden = back < 0;
  if (window > 0) hidden = hidden.logical_or(back >= window);
  return at::zeros(back.sizes(), at::kFloat).masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

// Causal attention of q [n, heads, length, width] to k and v of fewer heads, some queries at a time to the
// keys that they may see; the heads that share keys are one matrix. On a CPU this takes less time than
// LibTorch's fused kernel, which computes scores that the mask then hides.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window) {
  constexpr int64_t kQueries = 64;
  const int64_t n = q.size(0), shared = k.size(1), group = q.size(1) / shared, length = q.size(2),
                width = q.size(3);
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  // In float32, and by a power of two, the queries are scaled in place of the scores, which are more.
  int exponent = 0;
  const bool scale_queries = q.scalar_type() == at::kFloat || std::frexp(scale, &exponent) == 0.5;
  const at::Tensor queries = (scale_queries ? q.mul(scale) : q).view({n, shared, group, length, width});
  at::Tensor result = at::empty_like(queries);
  for (int64_t begin = 0; begin < length; begin += kQueries) {
    const int64_t end = std::min(begin + kQueries, length), rows = end - begin;
    const int64_t from = window > 0 ? std::max<int64_t>(0, begin - window + 1) : 0;
    const auto seen = [&](const at::Tensor& of) { return of.slice(2, from, end); };
    const at::Tensor scores = queries.slice(3, begin, end)
                                  .reshape({n, shared, group * rows, width})
                                  .matmul(seen(k).transpose(-1, -2))
                                  .to(at::kFloat);
    if (!scale_queries) scores.mul_(scale);
    const int64_t open = window > 0 ? from : begin;  // keys before it are seen by all of these queries
    scores.view({n, shared, group, rows, end - from})
        .slice(-1, open - from, end - from)
        .add_(mask_of(begin, open, end, window));
    const at::Tensor mixed = scores.softmax(-1).to(v.scalar_type()).matmul(seen(v));
    result.slice(3, begin, end).copy_(mixed.view({n, shared, group, rows, width}));
  }
  return result.view(q.sizes());
}

std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

// LibTorch's fused linear layers, which are not part of its C++ interface.
using Attributes = c10::List<std::optional<at::Scalar>>;
using Pointwise = at::Tensor(const at::Tensor& x, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias, c10::string_view operation, Attributes,
                             std::optional<c10::string_view>);
using Binary = at::Tensor(const at::Tensor& x, const at::Tensor& other, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias, c10::string_view operation);
std::optional<c10::OperatorHandle> find_operator(const char* name, const char* overload) {
  return c10::Dispatcher::singleton().findSchema({name, overload});
}

// Whether they are there for the type on this processor; without AVX-512 oneDNN refuses bfloat16.
bool is_fused(const at::Tensor& weight) {
  static const auto supported = find_operator("mkldnn::_is_mkldnn_bf16_supported", "");
  static const bool all = supported && find_operator("mkldnn::_linear_pointwise", "") &&
                          find_operator("mkldnn::_linear_pointwise", "binary") &&
                          find_operator("mkldnn::_reorder_linear_weight", "");
  if (!all || weight.scalar_type() != at::kBFloat16) return all;
  static const bool narrow = supported->typed<bool()>().call();
  return narrow;
}

at::Tensor pointwise(const Projection& layer, const at::Tensor& x, c10::string_view operation) {
  static const auto linear = find_operator("mkldnn::_linear_pointwise", "");
  return linear->typed<Pointwise>().call(x, layer.weight, optional(layer.bias), operation, Attributes(), "");
}

at::Tensor attention(const DecoderConfig& config, int64_t block, const BlockWeights& weights,
                     const Rotation& rotation, const at::Tensor& x) {
  const int64_t n = x.size(0), length = x.size(1), width = config.head_width;
  at::Tensor q = weights.query(x).view({n, length, config.heads, width});
  at::Tensor k = weights.key(x).view({n, length, config.kv_heads, width});
  const at::Tensor v = weights.value(x).view({n, length, config.kv_heads, width});
  if (config.head_norm) {
    q = rms_norm(q, weights.query_norm, config.norm_epsilon);
    k = rms_norm(k, weights.key_norm, config.norm_epsilon);
  }
  if (config.rotates[static_cast<size_t>(block)]) {
    q = rotated(q, rotation);
    k = rotated(k, rotation);
  }
  const int64_t window = config.windows[static_cast<size_t>(block)];
  const auto by_head = [](const at::Tensor& x) { return x.transpose(1, 2).contiguous(); };
  const at::Tensor mixed = attend(by_head(q), by_head(k), by_head(v), window);
  return mixed.transpose(1, 2).reshape({n, length, config.heads * width});
}

}  // namespace

void Projection::pack(int64_t rows) {
  static const auto reorder = find_operator("mkldnn::_reorder_linear_weight", "");
  if (is_fused(weight))
    weight = reorder->typed<at::Tensor(const at::Tensor&, std::optional<int64_t>)>().call(weight, rows);
}

at::Tensor Projection::operator()(const at::Tensor& x) const {
  return is_fused(weight) ? pointwise(*this, x, "none") : at::linear(x, weight, optional(bias));
}

at::Tensor Projection::silu(const at::Tensor& x) const {
  return is_fused(weight) ? pointwise(*this, x, "swish") : at::silu(at::linear(x, weight, optional(bias)));
}

at::Tensor Projection::add_to(const at::Tensor& sum, const at::Tensor& x) const {
  static const auto binary = find_operator("mkldnn::_linear_pointwise", "binary");
  if (!is_fused(weight)) return sum + at::linear(x, weight, optional(bias));
  return binary->typed<Binary>().call(x, sum, weight, optional(bias), "add");
}

Rotation rotation_of(const DecoderConfig& config, int64_t length, at::ScalarType compute) {
  const std::vector<double> frequencies = inverse_frequencies(config);
  // transformers multiplies positions and frequencies in float32.
  const at::Tensor angles =
      at::arange(length, at::kFloat).unsqueeze(1) * at::tensor(frequencies, at::kDouble).to(at::kFloat);
  const double factor = config.rope.attention_factor;
  return {(angles.cos() * factor).to(compute).unsqueeze(1), (angles.sin() * factor).to(compute).unsqueeze(1)};
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const at::Tensor exact = x.to(at::kFloat);
  return (exact * (exact.square().mean(-1, true) + epsilon).rsqrt()).to(x.scalar_type()) * weight;
}

at::Tensor block_forward(const DecoderConfig& config, int64_t block, const BlockWeights& weights,
                         const Rotation& rotation, const at::Tensor& hidden) {
  const at::Tensor mixed = attention(config, block, weights, rotation,
                                     rms_norm(hidden, weights.attention_norm, config.norm_epsilon));
  const at::Tensor middle = weights.output.add_to(hidden, mixed);
  const at::Tensor x = rms_norm(middle, weights.feed_forward_norm, config.norm_epsilon);
  return weights.down.add_to(middle, weights.gate.silu(x).mul_(weights.up(x)));
}

}  // namespace mcompress
