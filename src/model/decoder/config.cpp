#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "architecture.h"
#include "config_keys.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/decoder.h"
#include "quantization_config.h"
#include "rope_config.h"

namespace mcompress {

namespace {

using nlohmann::json;

Activation activation_named(const std::string& type, const std::string& key, const std::string& name) {
  constexpr std::array<std::pair<std::string_view, Activation>, 7> kKnown = {
      {{"silu", Activation::kSilu},
       {"swish", Activation::kSilu},
       {"gelu", Activation::kGelu},
       {"gelu_new", Activation::kTanhGelu},
       {"gelu_fast", Activation::kTanhGelu},
       {"gelu_pytorch_tanh", Activation::kTanhGelu},
       {"relu", Activation::kRelu}}};
  for (const auto& [known, activation] : kKnown) {
    if (known == type) return activation;
  }
  throw bad_data("{}: {} '{}' is not known; silu, gelu, gelu_new, gelu_pytorch_tanh and relu are", name, key,
                 type);
}

void read_sizes(const ConfigKeys& keys, const Architecture& architecture, DecoderConfig& config) {
  const KeyNames& named = architecture.keys;
  constexpr int64_t kMostBlocks = 10'000;
  for (const char* key : {named.width, named.blocks, named.heads, "vocab_size"}) {
    if (!keys.has(key)) throw bad_data("{}: '{}' is missing", keys.name(), key);
  }
  config.width = keys.count(named.width, 0);
  constexpr int64_t kUsualRatio = 4;  // of GPT-2, which alone may leave it out
  if (config.model_type != "gpt2" && !keys.has(named.inner))
    throw bad_data("{}: '{}' is missing", keys.name(), named.inner);
  config.inner = keys.count(named.inner, kUsualRatio * config.width);
  config.blocks = keys.count(named.blocks, 0, kMostBlocks);
  config.heads = keys.count(named.heads, 0);
  const bool shares = architecture.kv_heads > 0 && !keys.is_null("num_key_value_heads");
  config.kv_heads = keys.count("num_key_value_heads", shares ? architecture.kv_heads : config.heads);
  config.vocabulary = keys.count("vocab_size", 0);
  config.positions = keys.count(named.positions, architecture.positions, int64_t{1} << 32);
  if (config.heads % config.kv_heads != 0)
    throw bad_data("{}: {} attention heads are not a multiple of {} key/value heads", keys.name(),
                   config.heads, config.kv_heads);
  if (!keys.has("head_dim") && architecture.head_width == 0 && config.width % config.heads != 0)
    throw bad_data("{}: {} {} is not a multiple of {} attention heads", keys.name(), named.width,
                   config.width, config.heads);
  const int64_t by_heads = std::max<int64_t>(1, config.width / config.heads);
  config.head_width =
      keys.count("head_dim", architecture.head_width > 0 ? architecture.head_width : by_heads);
}

// How much of a head is rotated: transformers 5 says so in rope_parameters, 4 beside them.
int64_t read_rotated_width(const ConfigKeys& keys, const Architecture& architecture, int64_t head_width) {
  double part = keys.number("partial_rotary_factor", 1);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (keys.has(key) && keys[key].is_object())
      part = ConfigKeys(keys[key], fmt::format("{}, {}", keys.name(), key))
                 .number("partial_rotary_factor", part);
  }
  if (part > 1 || (part < 1 && !architecture.rotates_parts))
    throw bad_data("{}: a partial_rotary_factor of {} is not known for a {} model", keys.name(), part,
                   architecture.model_type);
  return static_cast<int64_t>(static_cast<double>(head_width) * part);
}

}  // namespace

std::string DecoderConfig::block_name(int64_t block) const {
  return fmt::format("{}{}{}.", names.base, names.block, block);
}

DecoderConfig read_decoder_config(const std::string& path) {
  return decoder_config_of(read_json_file(path), fmt::format("'{}'", path));
}

DecoderConfig decoder_config_of(const json& root, const std::string& name) {
  if (!root.is_object()) throw bad_data("{} is not a JSON object", name);
  const ConfigKeys keys(root, name);
  DecoderConfig config;
  const FolderQuantization quantization = read_quantization(keys);
  config.quantization = quantization.text;
  config.rounds_inputs = quantization.rounds_inputs;
  config.form = quantization.form;
  config.model_type = keys.text("model_type", "");
  const Architecture& architecture = architecture_of(config.model_type, name);
  read_sizes(keys, architecture, config);
  const char* epsilon = architecture.keys.epsilon;
  config.norm_epsilon =
      epsilon == nullptr ? architecture.norm_epsilon : keys.number(epsilon, architecture.norm_epsilon);
  if (!keys.flag("is_causal", true))
    throw bad_data("{}: a model with 'is_causal' false predicts no next token", name);
  config.tied_head = keys.flag("tie_word_embeddings", architecture.tied_head);
  const char* key = architecture.keys.activation;
  std::string activation = keys.text(key, architecture.activation);
  // Gemma's first files say gelu where they mean its approximation.
  if (config.model_type == "gemma" && activation == "gelu") activation = "gelu_pytorch_tanh";
  config.activation = activation_named(activation, key, name);
  config.score_scale = 1 / std::sqrt(static_cast<double>(config.head_width));
  config.rotated_width = read_rotated_width(keys, architecture, config.head_width);
  const bool by_kind = has_rope_by_kind(keys);
  if (!by_kind)
    config.rope = read_rope(
        keys, {architecture.theta, config.positions, architecture.original_positions, config.rotated_width});
  config.rotates.assign(static_cast<size_t>(config.blocks), true);
  config.windows.assign(static_cast<size_t>(config.blocks), 0);
  architecture.read(keys, config);
  if (by_kind && !config.window_rope)
    throw bad_data("{}: 'rope_parameters' by kind of attention are not known for a {} model", name,
                   config.model_type);
  const bool rotates = std::find(config.rotates.begin(), config.rotates.end(), true) != config.rotates.end();
  if (rotates && (config.rotated_width < 2 || config.rotated_width % 2 != 0))
    throw bad_data("{}: heads of width {} cannot be rotated, which takes an even one", name,
                   config.rotated_width);
  return config;
}

}  // namespace mcompress
