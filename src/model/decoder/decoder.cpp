#include "mcompress/model/decoder.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "block.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/process.h"
#include "source.h"

namespace mcompress {

namespace {

constexpr int64_t kTokens = 2048;  // that are run together

// The tensors of a Llama-like checkpoint, by the names that transformers gives them, with their shapes.
std::map<std::string, Shape> expected_tensors(const DecoderConfig& config) {
  const int64_t width = config.width, attention = config.heads * config.head_width,
                shared = config.kv_heads * config.head_width;
  std::map<std::string, Shape> tensors = {{"model.embed_tokens.weight", {config.vocabulary, width}},
                                          {"model.norm.weight", {width}}};
  if (!config.tied_head) tensors["lm_head.weight"] = {config.vocabulary, width};
  for (int64_t i = 0; i < config.blocks; ++i) {
    const auto add = [&](const char* name, const Shape& shape, bool biased = false) {
      const std::string full = fmt::format("model.layers.{}.{}.", i, name);
      tensors[full + "weight"] = shape;
      if (biased) tensors[full + "bias"] = {shape[0]};
    };
    add("input_layernorm", {width});
    add("post_attention_layernorm", {width});
    add("self_attn.q_proj", {attention, width}, config.qkv_bias);
    add("self_attn.k_proj", {shared, width}, config.qkv_bias);
    add("self_attn.v_proj", {shared, width}, config.qkv_bias);
    add("self_attn.o_proj", {width, attention}, config.output_bias);
    if (config.head_norm) {
      add("self_attn.q_norm", {config.head_width});
      add("self_attn.k_norm", {config.head_width});
    }
    add("mlp.gate_proj", {config.inner, width}, config.mlp_bias);
    add("mlp.up_proj", {config.inner, width}, config.mlp_bias);
    add("mlp.down_proj", {width, config.inner}, config.mlp_bias);
  }
  return tensors;
}

// Buffers that older versions of transformers saved, and the head where it is the embedding.
bool is_known_extra(const std::string& name, const DecoderConfig& config) {
  return name.ends_with("rotary_emb.inv_freq") || (config.tied_head && name == "lm_head.weight");
}

}  // namespace

struct Decoder::Impl {
  std::string path;
  at::ScalarType compute;
  DecoderConfig config;
  std::unique_ptr<WeightSource> weights;
  at::Tensor embedding, head, final_norm;

  Impl(std::string name, at::ScalarType type, OpenedModel model)
      : path(std::move(name)),
        compute(type),
        config(std::move(model.config)),
        weights(std::move(model.weights)) {
    check_tensors();
    embedding = weights->read("model.embed_tokens.weight");
    check_tied();
    final_norm = tensor("model.norm.weight");
    head = (config.tied_head ? embedding : weights->read("lm_head.weight")).to(compute);
  }

  void check_tensors() const {
    const std::map<std::string, Shape> expected = expected_tensors(config);
    for (const auto& [name, shape] : expected) {
      const auto found = weights->shapes().find(name);
      if (found == weights->shapes().end())
        throw bad_data("'{}' lacks tensor '{}', which a {} model of {} layers has", path, name,
                       config.model_type, config.blocks);
      if (found->second != shape)
        throw bad_data("'{}': tensor '{}' has shape [{}], and the configuration asks for [{}]", path, name,
                       fmt::join(found->second, ", "), fmt::join(shape, ", "));
    }
    for (const auto& [name, shape] : weights->shapes()) {
      if (!expected.contains(name) && !is_known_extra(name, config))
        throw bad_data(
            "'{}' has a tensor '{}', which a {} model of {} layers with this configuration has none of", path,
            name, config.model_type, config.blocks);
    }
  }

  // Files may hold the head beside the embedding that it is tied to, if it is the same.
  void check_tied() const {
    const std::string name = "lm_head.weight";
    if (!config.tied_head || !weights->shapes().contains(name)) return;
    const at::Tensor stored = weights->read(name);
    if (stored.sizes() != embedding.sizes() || !stored.equal(embedding))
      throw bad_data("'{}': '{}' differs from the embedding, and tie_word_embeddings says that they are one",
                     path, name);
  }

  at::Tensor tensor(const std::string& name) const { return weights->read(name).to(compute); }

  BlockWeights load_block(int64_t i) const {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const auto weight = [&](const char* name) { return tensor(prefix + name + ".weight"); };
    const auto projection = [&](const char* name, bool biased) {
      Projection made = {weight(name), biased ? tensor(prefix + name + ".bias") : at::Tensor()};
      made.pack(kTokens);
      return made;
    };
    BlockWeights block;
    block.attention_norm = weight("input_layernorm");
    block.feed_forward_norm = weight("post_attention_layernorm");
    if (config.head_norm) {
      block.query_norm = weight("self_attn.q_norm");
      block.key_norm = weight("self_attn.k_norm");
    }
    block.query = projection("self_attn.q_proj", config.qkv_bias);
    block.key = projection("self_attn.k_proj", config.qkv_bias);
    block.value = projection("self_attn.v_proj", config.qkv_bias);
    block.output = projection("self_attn.o_proj", config.output_bias);
    block.gate = projection("mlp.gate_proj", config.mlp_bias);
    block.up = projection("mlp.up_proj", config.mlp_bias);
    block.down = projection("mlp.down_proj", config.mlp_bias);
    return block;
  }
};

Decoder::Decoder(const std::string& path, at::ScalarType compute)
    : impl_(std::make_unique<Impl>(
          path, compute, std::filesystem::is_directory(path) ? open_folder(path) : open_gguf(path))) {
  keep_freed_memory();
}
Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;

const DecoderConfig& Decoder::config() const { return impl_->config; }

at::Tensor Decoder::embed(const at::Tensor& ids) const {
  const int64_t largest = ids.max().item<int64_t>(), least = ids.min().item<int64_t>();
  if (least < 0 || largest >= impl_->config.vocabulary)
    throw bad_data("token id {} is outside the model's vocabulary of {}; the tokenizer is another model's",
                   least < 0 ? least : largest, impl_->config.vocabulary);
  return at::embedding(impl_->embedding, ids).to(impl_->compute);
}

void Decoder::run_block(int64_t block, const at::Tensor& hidden, int64_t first_window) const {
  const c10::InferenceMode guard;
  const BlockWeights weights = impl_->load_block(block);
  const int64_t count = hidden.size(0), length = hidden.size(1);
  const Rotation rotation = rotation_of(impl_->config, length, impl_->compute);
  const int64_t together = std::max<int64_t>(1, kTokens / length);
  for (int64_t begin = 0; begin < count; begin += together) {
    check_interrupt();
    const at::Tensor part = hidden.slice(0, begin, std::min(begin + together, count));
    const at::Tensor result = block_forward(impl_->config, block, weights, rotation, part);
    if (!result.sum({1, 2}, false, at::kFloat).isfinite().all().item<bool>()) {
      for (int64_t i = 0; i < result.size(0); ++i) {
        if (!result[i].isfinite().all().item<bool>())
          throw bad_data("'{}': block {} gives NaN or infinity for window {}", impl_->path, block,
                         first_window + begin + i + 1);
      }
    }
    part.copy_(result);
  }
  impl_->weights->give_back(fmt::format("model.layers.{}.", block));
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  const c10::InferenceMode guard;
  const Projection head = {impl_->head, {}};
  return head(rms_norm(hidden, impl_->final_norm, impl_->config.norm_epsilon)).to(at::kFloat);
}

}  // namespace mcompress
