#include "mcompress/model/gguf_export.h"

#include <algorithm>
#include <map>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "block.h"
#include "mcompress/base/error.h"
#include "source.h"

namespace mcompress {

namespace {

std::string architecture_of(const DecoderConfig& config) {
  const std::string& type = config.model_type;
  if (type == "llama" || type == "mistral") return "llama";
  if (type == "qwen2" || type == "qwen3") return type;
  throw bad_data("a {} model cannot be written as GGUF yet; llama, mistral, qwen2 and qwen3 can", type);
}

// Names that differ from those of the folder only.
std::vector<std::pair<std::string, std::string>> block_tensors(const DecoderConfig& config) {
  const DecoderNames& names = config.names;
  std::vector<std::pair<std::string, std::string>> tensors = {{names.attention_norm, "attn_norm"},
                                                              {names.query, "attn_q"},
                                                              {names.key, "attn_k"},
                                                              {names.value, "attn_v"},
                                                              {names.output, "attn_output"},
                                                              {names.feed_forward_norm, "ffn_norm"},
                                                              {names.gate, "ffn_gate"},
                                                              {names.up, "ffn_up"},
                                                              {names.down, "ffn_down"}};
  if (config.head_norm) {
    tensors.emplace_back(names.query_norm, "attn_q_norm");
    tensors.emplace_back(names.key_norm, "attn_k_norm");
  }
  return tensors;
}

}  // namespace

std::vector<std::pair<std::string, GgufField>> gguf_model_fields(const DecoderConfig& config,
                                                                 const std::string& name) {
  const std::string architecture = architecture_of(config);
  for (const int64_t window : config.windows) {
    if (window > 0 && window < config.positions)
      throw bad_data("blocks that look back {} tokens only cannot be written as GGUF yet", window);
  }
  const bool biased = (config.qkv_bias && architecture != "qwen2") || config.output_bias || config.mlp_bias;
  if (biased) throw bad_data("a {} model with these biases cannot be written as GGUF yet", config.model_type);
  std::vector<std::pair<std::string, GgufField>> fields = {
      {"general.architecture", architecture}, {"general.type", std::string("model")}, {"general.name", name}};
  const auto add = [&](const std::string& key, GgufField value) {
    fields.emplace_back(architecture + "." + key, std::move(value));
  };
  const auto count = [](int64_t value) { return static_cast<uint32_t>(value); };
  add("context_length", count(config.positions));
  add("embedding_length", count(config.width));
  add("block_count", count(config.blocks));
  add("feed_forward_length", count(config.inner));
  add("attention.head_count", count(config.heads));
  add("attention.head_count_kv", count(config.kv_heads));
  add("attention.key_length", count(config.head_width));
  add("attention.value_length", count(config.head_width));
  add("attention.layer_norm_rms_epsilon", static_cast<float>(config.norm_epsilon));
  add("vocab_size", count(config.vocabulary));
  add("rope.dimension_count", count(config.rotated_width));
  add("rope.freq_base", static_cast<float>(config.rope.theta));
  if (config.rope.scaling == RopeScaling::kLinear) {
    add("rope.scaling.type", std::string("linear"));
    add("rope.scaling.factor", static_cast<float>(config.rope.factor));
  } else if (config.rope.scaling != RopeScaling::kNone &&
             (config.rope.scaling != RopeScaling::kLlama3 || architecture != "llama")) {
    throw bad_data(
        "positions that are rotated by other angles than linear ones and Llama 3's cannot be written as GGUF "
        "yet");
  }
  fields.emplace_back("general.quantization_version", uint32_t{2});
  return fields;
}

std::vector<GgufPlace> gguf_places(const DecoderConfig& config) {
  const bool llama = architecture_of(config) == "llama";
  const DecoderNames& names = config.names;
  std::vector<GgufPlace> places = {
      {names.base + names.embedding + ".weight", "token_embd.weight", {config.vocabulary, config.width}}};
  for (int64_t block = 0; block < config.blocks; ++block) {
    std::map<std::string, DecoderLayer> layers;
    for (const auto& stage : stages_of(config, block)) {
      for (const DecoderLayer& layer : stage) layers[layer.name] = layer;
    }
    for (const auto& [source, target] : block_tensors(config)) {
      const std::string from = config.block_name(block) + source,
                        to = fmt::format("blk.{}.{}", block, target);
      const auto layer = layers.find(from);
      if (layer == layers.end()) {
        places.push_back({from + ".weight",
                          to + ".weight",
                          {target.ends_with("_q_norm") || target.ends_with("_k_norm") ? config.head_width
                                                                                      : config.width}});
        continue;
      }
      const int64_t heads = !llama                  ? 0
                            : source == names.query ? config.heads
                            : source == names.key   ? config.kv_heads
                                                    : 0;
      places.push_back(
          {from + ".weight", to + ".weight", {layer->second.outputs, layer->second.inputs}, heads});
      if (layer->second.biased) places.push_back({from + ".bias", to + ".bias", {layer->second.outputs}});
    }
  }
  if (config.rope.scaling == RopeScaling::kLlama3)
    places.push_back({"", kFrequencies, {config.rotated_width / 2}});
  places.push_back({names.base + names.final_norm + ".weight", "output_norm.weight", {config.width}});
  if (!config.tied_head)
    places.push_back({names.head + ".weight", "output.weight", {config.vocabulary, config.width}});
  return places;
}

at::Tensor gguf_values(const Decoder& model, const GgufPlace& place) {
  if (place.source.empty()) {
    const DecoderConfig& config = model.config();
    return at::tensor(llama3_divisors(config.rope, config.rotated_width), at::kDouble).to(at::kFloat);
  }
  const at::Tensor values = model.stored(place.source);
  if (place.heads == 0) return values.contiguous();
  const int64_t rows = values.size(0), columns = values.size(1);
  return values.reshape({place.heads, 2, rows / place.heads / 2, columns})
      .transpose(1, 2)
      .reshape({rows, columns})
      .contiguous();
}

at::Tensor gguf_blocks(const at::Tensor& rows, GgufType type) {
  const int64_t count = rows.size(0), columns = rows.numel() / std::max<int64_t>(1, count);
  const GgufBlock block = block_of(type);
  const auto row_bytes = static_cast<int64_t>(static_cast<uint64_t>(columns / block.values) * block.bytes);
  at::Tensor blocks = at::empty({count, row_bytes}, at::kByte);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      quantize_gguf(type, rows.const_data_ptr<float>() + row * columns, columns,
                    reinterpret_cast<std::byte*>(blocks.data_ptr<uint8_t>() + row * row_bytes));
  });
  return blocks;
}

}  // namespace mcompress
