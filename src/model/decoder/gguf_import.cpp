#include "mcompress/model/gguf_import.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "../folder_files.h"
#include "../shards.h"
#include "block.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace {

using nlohmann::ordered_json;

// Files hold what Llama 3's frequencies are divided by, and config.json the numbers that this follows from.
std::optional<Rope> llama3_of(const Rope& given, int64_t rotated_width) {
  for (const double factor : {8.0, 32.0, 4.0, 16.0}) {
    Rope rope;
    rope.theta = given.theta;
    rope.scaling = RopeScaling::kLlama3;
    rope.factor = factor;
    rope.original_positions = 8192;
    const std::vector<double> divisors = llama3_divisors(rope, rotated_width);
    const auto alike = [](double a, double b) { return std::abs(a - b) < 1e-5 * b; };
    if (std::equal(divisors.begin(), divisors.end(), given.divisors.begin(), given.divisors.end(), alike))
      return rope;
  }
  return std::nullopt;
}

ordered_json rope_json(const Rope& rope) {
  switch (rope.scaling) {
    case RopeScaling::kLinear: return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case RopeScaling::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor},
              {"original_max_position_embeddings", rope.original_positions}};
    case RopeScaling::kYarn:
      return {{"rope_type", "yarn"},
              {"factor", rope.factor},
              {"attention_factor", rope.attention_factor},
              {"beta_fast", rope.beta_fast},
              {"beta_slow", rope.beta_slow},
              {"original_max_position_embeddings", rope.original_positions}};
    default: return nullptr;
  }
}

std::vector<Shard> shards_of(const DecoderConfig& config, uint64_t shard_bytes) {
  std::vector<std::vector<SafetensorsWriter::Entry>> entries;
  for (const GgufPlace& place : gguf_places(config)) {
    if (!place.source.empty()) entries.push_back({{place.source, DType::kF32, place.shape}});
  }
  return plan_shards(std::move(entries), shard_bytes);
}

const std::map<std::string, std::string> kMetadata = {{"format", "pt"}};

}  // namespace

DecoderConfig folder_config(const DecoderConfig& of_gguf) {
  DecoderConfig config = of_gguf;
  config.names = DecoderNames();
  const auto refuse = [&](const std::string& what) {
    return bad_data("{} cannot be written as a Hugging Face folder yet", what);
  };
  const bool llama = config.model_type == "llama", qwen2 = config.model_type == "qwen2";
  if (!llama && !qwen2 && config.model_type != "qwen3")
    throw refuse(fmt::format("a {} model of a GGUF file", config.model_type));
  if (config.qkv_bias != qwen2 || config.output_bias || config.mlp_bias)
    throw refuse(fmt::format("a {} model with these biases", config.model_type));
  if (!config.rope.divisors.empty()) {
    const auto llama3 = llama3_of(config.rope, config.rotated_width);
    if (!llama3 || config.rope.scaling != RopeScaling::kNone)
      throw refuse("a model whose rope_freqs are not those of Llama 3");
    config.rope = *llama3;
  }
  return config;
}

ordered_json config_json(const DecoderConfig& config) {
  const std::map<std::string, const char*> classes = {
      {"llama", "LlamaForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"}, {"qwen3", "Qwen3ForCausalLM"}};
  return {{"architectures", ordered_json::array({classes.at(config.model_type)})},
          {"model_type", config.model_type},
          {"vocab_size", config.vocabulary},
          {"hidden_size", config.width},
          {"intermediate_size", config.inner},
          {"num_hidden_layers", config.blocks},
          {"num_attention_heads", config.heads},
          {"num_key_value_heads", config.kv_heads},
          {"head_dim", config.head_width},
          {"max_position_embeddings", config.positions},
          {"rms_norm_eps", config.norm_epsilon},
          {"hidden_act", "silu"},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"rope_theta", config.rope.theta},
          {"rope_scaling", rope_json(config.rope)},
          {"tie_word_embeddings", config.tied_head},
          {"dtype", "float32"}};
}

void write_folder(const Decoder& gguf, const DecoderConfig& config, const FolderTexts& texts,
                  uint64_t shard_bytes, const OutputFolder& folder) {
  const std::vector<Shard> shards = shards_of(config, shard_bytes);
  ShardWriter out(shards, kMetadata, folder);
  for (const GgufPlace& place : gguf_places(config)) {
    check_interrupt();
    if (place.source.empty()) continue;
    const at::Tensor values = gguf.stored(place.name).contiguous();
    if (!values.isfinite().all().item<bool>())
      throw bad_data("tensor '{}' holds NaN or infinity", place.name);
    out.write(place.source, 0, values);
  }
  out.commit();
  for (const auto& [name, text] : texts) write_text(folder.path_of(name), text);
  if (const std::string index = index_text(shards); !index.empty())
    write_text(folder.path_of(kIndexName), index);
}

uint64_t predict_folder_bytes(const DecoderConfig& config, const FolderTexts& texts, uint64_t shard_bytes) {
  const std::vector<Shard> shards = shards_of(config, shard_bytes);
  uint64_t bytes = index_text(shards).size();
  for (const Shard& shard : shards) bytes += SafetensorsWriter(shard.entries, kMetadata).file_bytes();
  for (const auto& [name, text] : texts) bytes += text.size();
  return bytes;
}

}  // namespace mcompress
