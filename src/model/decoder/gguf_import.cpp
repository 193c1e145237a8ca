#include "mcompress/model/gguf_import.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <string_view>
#include <tuple>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "../folder_files.h"
#include "../shards.h"
#include "architecture.h"
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
    case RopeScaling::kLongrope:  // transformers 4 takes these keys and no others
      return {{"type", "longrope"}, {"short_factor", rope.divisors}, {"long_factor", rope.long_divisors}};
    default: return nullptr;
  }
}

Error cannot_be_written(const std::string& what) {
  return bad_data("{} cannot be written as a Hugging Face folder yet; evaluate takes the GGUF file as it is",
                  what);
}

// How an architecture of GGUF is called in a folder, and the keys of its config.json beside those of all.
struct Imported {
  std::string_view name, model_type, class_name;
  void (*add)(const DecoderConfig& config, ordered_json& json) = [](const DecoderConfig&, ordered_json&) {};
};

void add_biases(const DecoderConfig& config, ordered_json& json) {
  json["attention_bias"] = config.qkv_bias && config.output_bias;
  json["mlp_bias"] = config.mlp_bias;
}

ordered_json number_or_null(double value) { return value > 0 ? ordered_json(value) : ordered_json(nullptr); }

ordered_json count_or_null(int64_t value) { return value > 0 ? ordered_json(value) : ordered_json(nullptr); }

// Which blocks have a window, and which one.
void add_windows(const DecoderConfig& config, ordered_json& json) {
  ordered_json types = ordered_json::array();
  for (const int64_t window : config.windows)
    types.push_back(window > 0 ? "sliding_attention" : "full_attention");
  json["sliding_window"] = count_or_null(*std::max_element(config.windows.begin(), config.windows.end()));
  json["layer_types"] = std::move(types);
}

void add_gemma2(const DecoderConfig& config, ordered_json& json) {
  add_windows(config, json);
  json["query_pre_attn_scalar"] = std::llround(1 / (config.score_scale * config.score_scale));
  json["attn_logit_softcapping"] = number_or_null(config.score_cap);
  json["final_logit_softcapping"] = number_or_null(config.logit_cap);
}

void add_gemma3(const DecoderConfig& config, ordered_json& json) {
  add_gemma2(config, json);
  json["rope_local_base_freq"] = config.window_rope->theta;
}

// Numbers that transformers gives a model by itself are of a larger vocabulary.
void add_no_padding(ordered_json& json) { json["pad_token_id"] = nullptr; }

void add_phi3(const DecoderConfig& config, ordered_json& json) {
  const bool known =
      config.rope.scaling == RopeScaling::kNone || config.rope.scaling == RopeScaling::kLongrope;
  if (!known) throw cannot_be_written("a phi3 model with positions that are rotated in this way");
  json["sliding_window"] = count_or_null(config.windows[0]);
  if (config.rotated_width != config.head_width)
    json["partial_rotary_factor"] =
        static_cast<double>(config.rotated_width) / static_cast<double>(config.head_width);
  if (config.rope.scaling == RopeScaling::kLongrope)
    json["original_max_position_embeddings"] = config.rope.original_positions;
  add_no_padding(json);
}

void add_smollm3(const DecoderConfig& config, ordered_json& json) {
  add_biases(config, json);
  json["no_rope_layers"] = ordered_json::array();
  for (const bool rotated : config.rotates) json["no_rope_layers"].push_back(rotated ? 1 : 0);
  add_no_padding(json);
}

const Imported& imported(const DecoderConfig& config) {
  static constexpr std::array<Imported, 9> kImported = {
      {{"gemma", "gemma", "GemmaForCausalLM"},
       {"gemma2", "gemma2", "Gemma2ForCausalLM", add_gemma2},
       {"gemma3", "gemma3_text", "Gemma3ForCausalLM", add_gemma3},
       {"gpt2", "gpt2", "GPT2LMHeadModel"},
       {"llama", "llama", "LlamaForCausalLM", add_biases},
       {"phi3", "phi3", "Phi3ForCausalLM", add_phi3},
       {"qwen2", "qwen2", "Qwen2ForCausalLM"},
       {"qwen3", "qwen3", "Qwen3ForCausalLM", add_biases},
       {"smollm3", "smollm3", "SmolLM3ForCausalLM", add_smollm3}}};
  for (const Imported& known : kImported) {
    if (known.name == config.model_type) return known;
  }
  throw error(Exit::kInternal, "internal error: no folder is known for a {} model", config.model_type);
}

// With the numbers that a file's divisors of frequencies follow from.
DecoderConfig with_rope_by_numbers(DecoderConfig config) {
  if (config.rope.divisors.empty() || config.rope.scaling == RopeScaling::kLongrope) return config;
  const auto llama3 = llama3_of(config.rope, config.rotated_width);
  if (!llama3 || config.rope.scaling != RopeScaling::kNone)
    throw cannot_be_written("a model whose rope_freqs are not those of Llama 3");
  config.rope = *llama3;
  return config;
}

// Files hold the factor of attention in float32, and folders what it follows from.
bool same_rope(const Rope& a, const Rope& b) {
  const auto numbers = [](const Rope& rope) {
    const bool scaled = rope.scaling != RopeScaling::kNone && rope.scaling != RopeScaling::kLinear,
               yarn = rope.scaling == RopeScaling::kYarn;
    return std::tuple(rope.theta, rope.scaling, rope.factor, scaled ? rope.original_positions : 0,
                      yarn ? rope.beta_fast : 0, yarn ? rope.beta_slow : 0);
  };
  constexpr double kNear = 1e-6;
  return numbers(a) == numbers(b) &&
         std::abs(a.attention_factor - b.attention_factor) < kNear * a.attention_factor &&
         a.divisors == b.divisors && a.long_divisors == b.long_divisors;
}

// Throws for what a config.json of the architecture cannot say.
void check_same(const DecoderConfig& read, const DecoderConfig& meant) {
  const auto biases = [](const DecoderConfig& c) {
    return std::tuple(c.qkv_bias, c.output_bias, c.mlp_bias);
  };
  const auto scores = [](const DecoderConfig& c) {
    return std::tuple(c.score_scale, c.score_cap, c.logit_cap);
  };
  const bool same_windows_rope = read.window_rope.has_value() == meant.window_rope.has_value() &&
                                 (!read.window_rope || same_rope(*read.window_rope, *meant.window_rope));
  for (const auto& [same, what] :
       {std::pair(biases(read) == biases(meant), "these biases"),
        std::pair(scores(read) == scores(meant), "this scale or these caps of scores"),
        std::pair(read.windows == meant.windows, "these windows"),
        std::pair(read.rotates == meant.rotates && read.rotated_width == meant.rotated_width &&
                      same_windows_rope && same_rope(read.rope, meant.rope),
                  "positions that are rotated in this way")}) {
    if (!same) throw cannot_be_written(fmt::format("a {} model with {}", meant.model_type, what));
  }
}

std::vector<int64_t> shape_in_folder(const GgufPlace& place) {
  return place.transposed ? std::vector<int64_t>{place.shape[1], place.shape[0]} : place.shape;
}

std::vector<Shard> shards_of(const DecoderConfig& config, uint64_t shard_bytes) {
  std::vector<std::vector<SafetensorsWriter::Entry>> entries;
  for (const GgufPlace& place : gguf_places(config)) {
    if (!place.source.empty()) entries.push_back({{place.source, DType::kF32, shape_in_folder(place)}});
  }
  return plan_shards(std::move(entries), shard_bytes);
}

const std::map<std::string, std::string> kMetadata = {{"format", "pt"}};

}  // namespace

ordered_json config_json(const DecoderConfig& of_gguf) {
  const DecoderConfig config = with_rope_by_numbers(of_gguf);
  const Imported& kind = imported(config);
  const KeyNames& keys = architecture_of(std::string(kind.model_type), "").keys;
  ordered_json json = {
      {"architectures", ordered_json::array({kind.class_name})},
      {"model_type", kind.model_type},
      {"vocab_size", config.vocabulary},
      {keys.width, config.width},
      {keys.inner, config.inner},
      {keys.blocks, config.blocks},
      {keys.heads, config.heads},
      {keys.positions, config.positions},
      {keys.epsilon, config.norm_epsilon},
      {keys.activation, config.activation == Activation::kSilu ? "silu" : "gelu_pytorch_tanh"}};
  if (!config.first_position) {
    json["num_key_value_heads"] = config.kv_heads;
    json["head_dim"] = config.head_width;
    json["rope_theta"] = config.rope.theta;
    json["rope_scaling"] = rope_json(config.rope);
  }
  kind.add(config, json);
  json["tie_word_embeddings"] = config.tied_head;
  json["dtype"] = "float32";
  return json;
}

DecoderConfig folder_config(const DecoderConfig& of_gguf) {
  DecoderConfig config = decoder_config_of(nlohmann::json(config_json(of_gguf)), "config.json");
  check_same(config, with_rope_by_numbers(of_gguf));
  return config;
}

void write_folder(const Decoder& gguf, const DecoderConfig& config, const FolderTexts& texts,
                  uint64_t shard_bytes, const OutputFolder& folder) {
  const std::vector<Shard> shards = shards_of(config, shard_bytes);
  ShardWriter out(shards, kMetadata, folder);
  for (const GgufPlace& place : gguf_places(config)) {
    check_interrupt();
    if (place.source.empty()) continue;
    at::Tensor values = gguf.stored(place.name);
    if (place.transposed) values = values.t();
    // Files have what norms multiply by.
    if (config.norm == NormKind::kOffsetRms && values.dim() == 1) values = values - 1;
    if (!values.isfinite().all().item<bool>())
      throw bad_data("tensor '{}' holds NaN or infinity; repair the model", place.name);
    out.write(place.source, 0, values.contiguous());
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
