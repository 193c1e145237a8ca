#include "mcompress/model/decoder.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "block_run.h"
#include "mcompress/base/error.h"
#include "mcompress/base/process.h"
#include "mcompress/model/checkpoint.h"
#include "source.h"

namespace mcompress {

namespace {

constexpr int64_t kHeadRows = 128;  // of hidden states, whose logits are computed together

// The tensors of a checkpoint, with their shapes.
std::map<std::string, Shape> expected_tensors(const DecoderConfig& config) {
  const DecoderNames& names = config.names;
  const int64_t width = config.width;
  const bool norm_bias = config.norm == NormKind::kLayer;
  std::map<std::string, Shape> tensors;
  std::string prefix = names.base;
  const auto add = [&](const std::string& name, const Shape& shape, bool biased = false) {
    tensors[prefix + name + ".weight"] = shape;
    if (biased) tensors[prefix + name + ".bias"] = {shape[0]};
  };
  const auto add_layer = [&](const std::string& name, int64_t outputs, int64_t inputs, bool biased) {
    tensors[prefix + name + ".weight"] = config.transposed ? Shape{inputs, outputs} : Shape{outputs, inputs};
    if (biased) tensors[prefix + name + ".bias"] = {outputs};
  };
  add(names.embedding, {config.vocabulary, width});
  if (config.first_position) add(names.positions, {config.positions + *config.first_position, width});
  add(names.final_norm, {width}, norm_bias);
  if (!config.tied_head) tensors[names.head + ".weight"] = {config.vocabulary, width};
  for (int64_t i = 0; i < config.blocks; ++i) {
    prefix = config.block_name(i);
    add(names.attention_norm, {width}, norm_bias);
    add(names.feed_forward_norm, {width}, norm_bias);
    if (config.closing_norms) {
      add(names.closing_attention_norm, {width}, norm_bias);
      add(names.closing_feed_forward_norm, {width}, norm_bias);
    }
    if (config.head_norm) {
      add(names.query_norm, {config.head_width});
      add(names.key_norm, {config.head_width});
    }
    for (const auto& stage : stored_layers(config)) {
      for (const StoredLayer& layer : stage)
        add_layer(layer.name, layer.outputs(), layer.inputs, layer.biased);
    }
  }
  return tensors;
}

}  // namespace

bool is_known_extra(const std::string& name, const DecoderConfig& config) {
  const bool mask =
      config.model_type == "gpt2" && (name.ends_with(".attn.bias") || name.ends_with(".masked_bias"));
  return mask || name.ends_with("rotary_emb.inv_freq") ||
         (config.tied_head && name == config.names.head + ".weight");
}

namespace {

// Of tensors; none where they cannot be read, which whoever reads them tells.
std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  try {
    const CheckpointFiles files = read_checkpoint(folder, ModelFormat::kHuggingFace);
    for (const Array& array : files.arrays) names.insert(array.name);
  } catch (const Error&) {
    return {};
  }
  return names;
}

}  // namespace

DecoderConfig read_model_config(const std::string& path) {
  if (std::filesystem::is_directory(path)) {
    DecoderConfig config = read_decoder_config(path + "/config.json");
    name_as_stored(config.names,
                   [names = names_in(path)](const std::string& name) { return names.contains(name); });
    return config;
  }
  const MappedFile file(path);
  return gguf_decoder_config(read_gguf(file.bytes(), path), path);
}

struct Decoder::Impl {
  std::string path;
  DecoderCompute compute;
  DecoderConfig config;
  std::unique_ptr<WeightSource> weights;
  at::Tensor embedding, learned_positions;
  Norm final_norm;
  mutable Projection head;  // read when it is first used

  Impl(std::string name, DecoderCompute given, OpenedModel model)
      : path(std::move(name)),
        compute(given),
        config(std::move(model.config)),
        weights(std::move(model.weights)) {
    check_tensors();
    const DecoderNames& names = config.names;
    embedding = weights->read(names.base + names.embedding + ".weight");
    if (config.first_position) learned_positions = weights->read(names.base + names.positions + ".weight");
    check_tied();
    final_norm = load_norm(names.base + names.final_norm);
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
    const std::string name = config.names.head + ".weight";
    if (!config.tied_head || !weights->shapes().contains(name)) return;
    const at::Tensor stored = weights->read(name);
    if (stored.sizes() != embedding.sizes() || !stored.to(at::kFloat).equal(embedding.to(at::kFloat)))
      throw bad_data("'{}': '{}' differs from the embedding, and tie_word_embeddings says that they are one",
                     path, name);
  }

  at::Tensor tensor(const std::string& name) const { return weights->read(name).to(compute.type); }

  Norm load_norm(const std::string& name) const {
    const at::Tensor weight = weights->read(name + ".weight");
    switch (config.norm) {
      case NormKind::kRms: return {weight.to(compute.type), {}};
      case NormKind::kOffsetRms: return {weight.to(at::kFloat) + 1, {}};
      case NormKind::kLayer: return {weight.to(compute.type), tensor(name + ".bias")};
    }
    return {};
  }

  at::Tensor read_weight(const std::string& layer) const {
    const at::Tensor stored = weights->read(layer + ".weight");
    return config.transposed && layer != config.names.head ? stored.t() : stored;
  }

  void load_layer(const StoredLayer& layer, const std::string& name, BlockWeights& block) const {
    const at::Tensor bias = layer.biased ? tensor(name + ".bias") : at::Tensor();
    int64_t first = 0;
    for (const StoredLayer::Part& part : layer.parts) {
      Projection& projection = block.*part.layer;
      if (bias.defined()) projection.bias = bias.narrow(0, first, part.outputs);
      projection.rounds_inputs = weights->rounds_inputs(name + ".weight");
      first += part.outputs;
    }
    set_layer(layer, read_weight(name), compute, block);
  }

  // Packed like the layers of a block; the packing of a large vocabulary takes as long as some windows.
  const Projection& loaded_head() const {
    if (head.weight.defined()) return head;
    const std::string name = config.names.head + ".weight";
    const at::Tensor weight = config.tied_head ? embedding : weights->read(name);
    head = {weight.to(compute.type), {}, !config.tied_head && weights->rounds_inputs(name), {}};
    head.pack(kHeadRows);
    return head;
  }

  BlockWeights load_block(int64_t i) const {
    const DecoderNames& names = config.names;
    const std::string prefix = config.block_name(i);
    const auto norm = [&](const std::string& name) { return load_norm(prefix + name); };
    BlockWeights block;
    block.attention_norm = norm(names.attention_norm);
    block.feed_forward_norm = norm(names.feed_forward_norm);
    if (config.closing_norms) {
      block.closing_attention_norm = norm(names.closing_attention_norm);
      block.closing_feed_forward_norm = norm(names.closing_feed_forward_norm);
    }
    if (config.head_norm) {
      block.query_norm = norm(names.query_norm);
      block.key_norm = norm(names.key_norm);
    }
    for (const auto& stage : stored_layers(config)) {
      for (const StoredLayer& layer : stage) load_layer(layer, prefix + layer.name, block);
    }
    return block;
  }
};

Decoder::Decoder(const std::string& path, DecoderCompute compute)
    : impl_(std::make_unique<Impl>(
          path, compute, std::filesystem::is_directory(path) ? open_folder(path) : open_gguf(path))) {
  keep_freed_memory();
}
Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;

const DecoderCompute& Decoder::compute() const { return impl_->compute; }
const DecoderConfig& Decoder::config() const { return impl_->config; }

at::Tensor Decoder::embed(const at::Tensor& ids) const {
  const DecoderConfig& config = impl_->config;
  const int64_t largest = ids.max().item<int64_t>(), least = ids.min().item<int64_t>();
  if (least < 0 || largest >= impl_->config.vocabulary)
    throw bad_data("token id {} is outside the model's vocabulary of {}", least < 0 ? least : largest,
                   impl_->config.vocabulary);
  at::Tensor hidden = at::embedding(impl_->embedding, ids).to(impl_->compute.type);
  impl_->weights->give_back(config.names.base + config.names.embedding);
  // Rounded to the computing type first, as transformers does.
  if (config.embedding_scale != 1) hidden.mul_(at::tensor(config.embedding_scale).to(impl_->compute.type));
  if (config.first_position) {
    if (ids.size(1) > config.positions)
      throw bad_data(
          "'{}' has learned {} positions, and a window has {} tokens; use a --seqlen of at most that",
          impl_->path, config.positions, ids.size(1));
    hidden += impl_->learned_positions.narrow(0, *config.first_position, ids.size(1)).to(impl_->compute.type);
  }
  return hidden;
}

DecoderBlock Decoder::open_block(int64_t block, const at::Tensor& hidden, int64_t first_window) const {
  const DecoderConfig& config = impl_->config;
  const bool windowed = config.windows[static_cast<size_t>(block)] > 0 && config.window_rope;
  const Rotation rotation = rotation_of(windowed ? *config.window_rope : config.rope, config.rotated_width,
                                        hidden.size(1), impl_->compute.type);
  auto opened = std::make_unique<DecoderBlock::Impl>(
      DecoderBlock::Impl{impl_->path, config, *impl_->weights, block, impl_->compute,
                         impl_->load_block(block), rotation, hidden, first_window});
  return DecoderBlock(std::move(opened));
}

void Decoder::run_block(int64_t block, const at::Tensor& hidden, int64_t first_window) const {
  const c10::InferenceMode guard;
  open_block(block, hidden, first_window).run();
}

at::Tensor Decoder::layer_weight(const std::string& layer) const {
  return impl_->read_weight(layer).to(at::kFloat);
}

at::Tensor Decoder::stored(const std::string& name) const {
  return impl_->weights->read(name).to(at::kFloat);
}

void Decoder::set_embedding(const at::Tensor& weight) {
  impl_->embedding = weight.to(impl_->embedding.scalar_type());
  if (impl_->config.tied_head) impl_->head = {};
}

at::Tensor Decoder::head_inputs(const at::Tensor& hidden) const {
  return normalized(impl_->config, impl_->final_norm, hidden.to(impl_->compute.type));
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  const c10::InferenceMode guard;
  at::Tensor values = impl_->loaded_head()({head_inputs(hidden)}).to(at::kFloat);
  cap_values(values, impl_->config.logit_cap);
  return values;
}

}  // namespace mcompress
