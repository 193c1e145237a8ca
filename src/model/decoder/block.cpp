#include "block.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "rms_norm.h"

namespace mcompress {

namespace {

// Rotates [n, length, heads, width] by halves: (a, b) to (a cos - b sin, b cos + a sin); what is beyond the
// rotated width stays.
at::Tensor rotated(const at::Tensor& x, const Rotation& rotation) {
  const int64_t half = rotation.cosine.size(-1), rest = x.size(-1) - 2 * half;
  const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
  const at::Tensor first = a * rotation.cosine - b * rotation.sine,
                   second = b * rotation.cosine + a * rotation.sine;
  if (rest == 0) return at::cat({first, second}, -1);
  return at::cat({first, second, x.narrow(-1, 2 * half, rest)}, -1);
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
at::Tensor attend(const DecoderConfig& config, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  int64_t window) {
  constexpr int64_t kQueries = 64;
  const int64_t n = q.size(0), shared = k.size(1), group = q.size(1) / shared, length = q.size(2),
                width = q.size(3);
  const double scale = config.score_scale;
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
    cap_values(scores, config.score_cap);
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
  if (!weight.defined()) return false;
  static const auto supported = find_operator("mkldnn::_is_mkldnn_bf16_supported", "");
  static const bool all = supported && find_operator("mkldnn::_linear_pointwise", "") &&
                          find_operator("mkldnn::_linear_pointwise", "binary") &&
                          find_operator("mkldnn::_reorder_linear_weight", "");
  if (!all || weight.scalar_type() != at::kBFloat16) return all;
  static const bool narrow = supported->typed<bool()>().call();
  return narrow;
}

// What oneDNN calls an activation, and what of two ways to compute it.
struct Operation {
  const char *name, *algorithm;
};

Operation operation_of(Activation activation) {
  switch (activation) {
    case Activation::kSilu: return {"swish", ""};
    case Activation::kGelu: return {"gelu", "none"};
    case Activation::kTanhGelu: return {"gelu", "tanh"};
    case Activation::kRelu: return {"relu", ""};
  }
  return {"none", ""};
}

// In place.
at::Tensor apply(Activation activation, at::Tensor x) {
  switch (activation) {
    case Activation::kSilu: return at::silu_(x);
    case Activation::kGelu: return at::gelu_(x, "none");
    case Activation::kTanhGelu: return at::gelu_(x, "tanh");
    case Activation::kRelu: return at::relu_(x);
  }
  return x;
}

at::Tensor pointwise(const Projection& layer, const at::Tensor& x, Operation operation) {
  static const auto linear = find_operator("mkldnn::_linear_pointwise", "");
  return linear->typed<Pointwise>().call(x, layer.weight, optional(layer.bias), operation.name, Attributes(),
                                         operation.algorithm);
}

}  // namespace

void Projection::pack(int64_t rows) {
  static const auto reorder = find_operator("mkldnn::_reorder_linear_weight", "");
  if (is_fused(weight))
    weight = reorder->typed<at::Tensor(const at::Tensor&, std::optional<int64_t>)>().call(weight, rows);
}

void Projection::round() {
  codes = int8_rows(weight);
  weight = at::Tensor();
}

LayerInputs Projection::inputs(const at::Tensor& x) const {
  if (!codes) return {x};
  return {x, int8_rows(x.flatten(0, -2))};
}

at::Tensor Projection::product(const LayerInputs& given) const {
  if (!codes) return at::linear(rounded(given.x), weight, optional(bias));
  std::vector<int64_t> shape = given.x.sizes().vec();
  shape.back() = codes->rows;
  return multiply(*given.codes, *codes, bias).view(shape);
}

at::Tensor Projection::operator()(const LayerInputs& given) const {
  return is_fused(weight) ? pointwise(*this, rounded(given.x), {"none", ""}) : product(given);
}

at::Tensor Projection::activated(const LayerInputs& given, Activation activation) const {
  return is_fused(weight) ? pointwise(*this, rounded(given.x), operation_of(activation))
                          : apply(activation, product(given));
}

at::Tensor Projection::add_to(const at::Tensor& sum, const LayerInputs& given) const {
  static const auto binary = find_operator("mkldnn::_linear_pointwise", "binary");
  if (!is_fused(weight)) return product(given).add_(sum);
  return binary->typed<Binary>().call(rounded(given.x), sum, weight, optional(bias), "add");
}

// As compressed-tensors rounds the inputs of a token while it runs: the scale is the largest by 127.5.
at::Tensor Projection::rounded(const at::Tensor& x) const {
  if (!rounds_inputs) return x;
  const at::Tensor scale = (x.abs().amax(-1, true) / 127.5).clamp_min(std::numeric_limits<float>::min());
  return (x / scale).round_().clamp_(-128, 127).mul_(scale);
}

at::Tensor normalized(const DecoderConfig& config, const Norm& norm, const at::Tensor& x) {
  if (config.norm == NormKind::kLayer)
    return at::layer_norm(x, norm.weight.sizes(), norm.weight, norm.bias, config.norm_epsilon);
  return rms_norm(x, norm.weight, config.norm_epsilon);
}

void cap_values(const at::Tensor& x, double cap) {
  if (cap > 0) x.div_(cap).tanh_().mul_(cap);
}

at::Tensor BlockPass::add(const Projection& layer, const Norm& closing, const at::Tensor& sum,
                          const at::Tensor& x) const {
  return config.closing_norms ? sum + normalized(config, closing, layer(layer.inputs(x)))
                              : layer.add_to(sum, layer.inputs(x));
}

at::Tensor BlockPass::attention_inputs(const at::Tensor& hidden) const {
  return normalized(config, weights.attention_norm, hidden);
}

at::Tensor BlockPass::attention(const at::Tensor& x) const {
  const int64_t n = x.size(0), length = x.size(1), width = config.head_width;
  const LayerInputs inputs = weights.query.inputs(x);
  at::Tensor q = weights.query(inputs).view({n, length, config.heads, width});
  at::Tensor k = weights.key(inputs).view({n, length, config.kv_heads, width});
  const at::Tensor v = weights.value(inputs).view({n, length, config.kv_heads, width});
  if (config.head_norm) {
    q = normalized(config, weights.query_norm, q);
    k = normalized(config, weights.key_norm, k);
  }
  if (config.rotates[static_cast<size_t>(block)]) {
    q = rotated(q, rotation);
    k = rotated(k, rotation);
  }
  const int64_t window = config.windows[static_cast<size_t>(block)];
  const auto by_head = [](const at::Tensor& x) { return x.transpose(1, 2).contiguous(); };
  const at::Tensor mixed = attend(config, by_head(q), by_head(k), by_head(v), window);
  return mixed.transpose(1, 2).reshape({n, length, config.heads * width});
}

at::Tensor BlockPass::add_attention(const at::Tensor& hidden, const at::Tensor& mixed) const {
  return add(weights.output, weights.closing_attention_norm, hidden, mixed);
}

at::Tensor BlockPass::feed_forward_inputs(const at::Tensor& hidden) const {
  return normalized(config, weights.feed_forward_norm, hidden);
}

at::Tensor BlockPass::feed_forward(const at::Tensor& x) const {
  const LayerInputs inputs = weights.up.inputs(x);
  return config.gated ? weights.gate.activated(inputs, config.activation).mul_(weights.up(inputs))
                      : weights.up.activated(inputs, config.activation);
}

at::Tensor BlockPass::add_feed_forward(const at::Tensor& hidden, const at::Tensor& inner) const {
  return add(weights.down, weights.closing_feed_forward_norm, hidden, inner);
}

}  // namespace mcompress
