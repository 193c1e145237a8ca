#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <string_view>
#include <utility>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "config_keys.h"
#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

namespace {

using nlohmann::json;

RopeScaling scaling_named(const std::string& type, const std::string& name) {
  constexpr std::array<std::pair<std::string_view, RopeScaling>, 5> kKnown = {
      {{"default", RopeScaling::kNone},
       {"linear", RopeScaling::kLinear},
       {"dynamic", RopeScaling::kDynamic},
       {"llama3", RopeScaling::kLlama3},
       {"yarn", RopeScaling::kYarn}}};
  for (const auto& [known, scaling] : kKnown) {
    if (known == type) return scaling;
  }
  throw bad_data("{}: rope type '{}' is not known; known are default, linear, dynamic, llama3 and yarn", name,
                 type);
}

// transformers 5 writes all of it as rope_parameters; 4 writes rope_theta and rope_scaling apart.
Rope read_rope(const ConfigKeys& keys, double default_theta, int64_t positions) {
  static const json kEmpty = json::object();
  constexpr std::array<std::string_view, 12> kKnown = {"rope_type",
                                                       "type",
                                                       "rope_theta",
                                                       "factor",
                                                       "original_max_position_embeddings",
                                                       "low_freq_factor",
                                                       "high_freq_factor",
                                                       "beta_fast",
                                                       "beta_slow",
                                                       "attention_factor",
                                                       "truncate",
                                                       "finetuned"};
  if (keys.has("rope_parameters") && keys.has("rope_scaling"))
    throw bad_data("{}: it has 'rope_parameters' and 'rope_scaling', which mean the same; leave one",
                   keys.name());
  const char* key = keys.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json& object = keys.has(key) ? keys[key] : kEmpty;
  if (!object.is_object()) throw bad_data("{}: '{}' is not an object", keys.name(), key);
  for (const auto& [name, value] : object.items()) {
    if (std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end() && !value.is_null())
      throw bad_data("{}: '{}' of '{}' is not known", keys.name(), name, key);
  }
  const ConfigKeys scaled(object, keys.name() + ", " + key);
  Rope rope;
  rope.theta = scaled.number("rope_theta", keys.number("rope_theta", default_theta));
  rope.scaling = scaling_named(scaled.text("rope_type", scaled.text("type", "default")), keys.name());
  if (rope.scaling == RopeScaling::kNone) return rope;
  if (!scaled.has("factor")) throw bad_data("{}: '{}' has no factor", keys.name(), key);
  rope.factor = scaled.number("factor", 1);
  constexpr double kMostFactor = 1e6;
  if (rope.factor > kMostFactor)
    throw bad_data("{}: a factor of {} is that of no model", scaled.name(), rope.factor);
  constexpr const char* kOriginal = "original_max_position_embeddings";
  rope.original_positions =
      keys.count(kOriginal, scaled.count(kOriginal, positions, int64_t{1} << 32), int64_t{1} << 32);
  if (rope.scaling == RopeScaling::kLlama3) {
    if (!scaled.has("low_freq_factor") || !scaled.has("high_freq_factor"))
      throw bad_data("{}: llama3 needs low_freq_factor and high_freq_factor", scaled.name());
    rope.low_freq_factor = scaled.number("low_freq_factor", 0);
    rope.high_freq_factor = scaled.number("high_freq_factor", 0);
    if (rope.low_freq_factor >= rope.high_freq_factor)
      throw bad_data("{}: low_freq_factor {} is not below high_freq_factor {}", scaled.name(),
                     rope.low_freq_factor, rope.high_freq_factor);
  }
  if (rope.scaling == RopeScaling::kYarn) {
    rope.beta_fast = scaled.number("beta_fast", rope.beta_fast);
    rope.beta_slow = scaled.number("beta_slow", rope.beta_slow);
    if (rope.beta_fast < rope.beta_slow || rope.theta <= 1)
      throw bad_data("{}: yarn needs beta_fast above beta_slow and rope_theta above 1", scaled.name());
    rope.truncate = scaled.flag("truncate", true);
    const double grown = rope.factor <= 1 ? 1 : 0.1 * std::log(rope.factor) + 1;
    rope.attention_factor = scaled.number("attention_factor", grown);
  }
  return rope;
}

// What an architecture has that config.json does not say, and the values of keys that it leaves out.
struct Architecture {
  std::string_view model_type;
  std::function<void(const ConfigKeys&, DecoderConfig&)> read;
  int64_t kv_heads = 0, head_width = 0;  // 0: of all heads; the width by the heads
  int64_t positions = 2048;
  double theta = 10000;
  bool tied_head = false;
};

// Reads which blocks attend to a window only: layer_types names them, or else `is_windowed` tells.
void read_windows(const ConfigKeys& keys, int64_t default_window,
                  const std::function<bool(size_t block)>& is_windowed, DecoderConfig& config) {
  // Where the key is null there is no window; where it is absent the architecture's own.
  const int64_t window =
      keys.is_null("sliding_window") ? 0 : keys.count("sliding_window", default_window, int64_t{1} << 32);
  const auto blocks = static_cast<size_t>(config.blocks);
  const bool named = keys.has("layer_types");
  if (named && (!keys["layer_types"].is_array() || keys["layer_types"].size() != blocks))
    throw bad_data("{}: 'layer_types' is not a list of {} texts", keys.name(), blocks);
  for (size_t i = 0; i < blocks; ++i) {
    bool windowed = window > 0 && is_windowed(i);
    if (named) {
      const json& type = keys["layer_types"][i];
      if (type != "sliding_attention" && type != "full_attention")
        throw bad_data("{}: attention {} of layer {} is not known", keys.name(), type.dump(), i);
      windowed = type == "sliding_attention";
      if (windowed && window == 0)
        throw bad_data("{}: layer {} has sliding_attention, and 'sliding_window' is missing", keys.name(), i);
    }
    config.windows[i] = windowed ? window : 0;
  }
}

// Qwen's windows are on the blocks from max_window_layers on.
void read_qwen_windows(const ConfigKeys& keys, DecoderConfig& config) {
  if (!keys.flag("use_sliding_window", false)) return;
  const int64_t first = keys.count("max_window_layers", 28, int64_t{1} << 24, 0);
  read_windows(
      keys, 4096, [&](size_t block) { return static_cast<int64_t>(block) >= first; }, config);
}

// Blocks without positions (SmolLM3): a list of ones and zeros, or every so many blocks.
void read_rotations(const ConfigKeys& keys, DecoderConfig& config) {
  const auto blocks = static_cast<size_t>(config.blocks);
  const int64_t interval = keys.count("no_rope_layer_interval", 4);
  for (size_t i = 0; i < blocks; ++i) config.rotates[i] = (static_cast<int64_t>(i) + 1) % interval != 0;
  if (!keys.has("no_rope_layers")) return;
  const json& layers = keys["no_rope_layers"];
  if (!layers.is_array() || layers.size() != blocks)
    throw bad_data("{}: 'no_rope_layers' is not a list of {} numbers", keys.name(), blocks);
  for (size_t i = 0; i < blocks; ++i) {
    if (!layers[i].is_number_integer() || (layers[i] != 0 && layers[i] != 1))
      throw bad_data("{}: 'no_rope_layers' has {} for layer {}, and should have 0 or 1", keys.name(),
                     layers[i].dump(), i);
    config.rotates[i] = layers[i] == 1;
  }
}

void read_biases(const ConfigKeys& keys, DecoderConfig& config) {
  config.qkv_bias = config.output_bias = keys.flag("attention_bias", false);
  config.mlp_bias = keys.flag("mlp_bias", false);
}

const std::array<Architecture, 5>& architectures() {
  static const std::array<Architecture, 5> kKnown = {{
      {.model_type = "llama", .read = read_biases},
      {.model_type = "mistral",
       .read =
           [](const ConfigKeys& keys, DecoderConfig& config) {
             read_windows(
                 keys, 4096, [](size_t) { return true; }, config);
           },
       .kv_heads = 8,
       .positions = 4096 * 32},
      {.model_type = "qwen2",
       .read =
           [](const ConfigKeys& keys, DecoderConfig& config) {
             config.qkv_bias = true;
             read_qwen_windows(keys, config);
           },
       .kv_heads = 32,
       .positions = 32768},
      {.model_type = "qwen3",
       .read =
           [](const ConfigKeys& keys, DecoderConfig& config) {
             config.head_norm = true;
             config.qkv_bias = config.output_bias = keys.flag("attention_bias", false);
             read_qwen_windows(keys, config);
           },
       .kv_heads = 32,
       .head_width = 128,
       .positions = 32768},
      {.model_type = "smollm3",
       .read =
           [](const ConfigKeys& keys, DecoderConfig& config) {
             read_biases(keys, config);
             read_rotations(keys, config);
             if (!keys.flag("use_sliding_window", false)) return;
             read_windows(
                 keys, 0, [&](size_t block) { return !config.rotates[block]; }, config);
           },
       .kv_heads = 4,
       .positions = 32768,
       .theta = 2e6,
       .tied_head = true},
  }};
  return kKnown;
}

const Architecture& architecture_of(const std::string& type, const std::string& name) {
  std::vector<std::string_view> known;
  for (const Architecture& architecture : architectures()) {
    if (architecture.model_type == type) return architecture;
    known.push_back(architecture.model_type);
  }
  throw bad_data("{}: model type '{}' cannot be run; known are {}", name, type, fmt::join(known, ", "));
}

}  // namespace

DecoderConfig read_decoder_config(const std::string& path) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const std::string name = fmt::format("'{}'", path);
  const json root = parse_json(text, name);
  if (!root.is_object()) throw bad_data("{} is not a JSON object", name);
  const ConfigKeys keys(root, name);
  if (keys.has("quantization_config"))
    throw bad_data("{}: the model is quantized already, and such weights cannot be run yet", name);
  DecoderConfig config;
  config.model_type = keys.text("model_type", "");
  const Architecture& architecture = architecture_of(config.model_type, name);
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}) {
    if (!keys.has(key)) throw bad_data("{}: '{}' is missing", name, key);
  }
  constexpr int64_t kMostBlocks = 10'000;
  config.width = keys.count("hidden_size", 0);
  config.inner = keys.count("intermediate_size", 0);
  config.blocks = keys.count("num_hidden_layers", 0, kMostBlocks);
  config.heads = keys.count("num_attention_heads", 0);
  const bool shares = architecture.kv_heads > 0 && !keys.is_null("num_key_value_heads");
  config.kv_heads = keys.count("num_key_value_heads", shares ? architecture.kv_heads : config.heads);
  config.vocabulary = keys.count("vocab_size", 0);
  config.positions = keys.count("max_position_embeddings", architecture.positions, int64_t{1} << 32);
  config.norm_epsilon = keys.number("rms_norm_eps", config.norm_epsilon);
  config.tied_head = keys.flag("tie_word_embeddings", architecture.tied_head);
  const std::string activation = keys.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish")
    throw bad_data("{}: hidden_act '{}' is not known; silu is", name, activation);
  if (config.heads % config.kv_heads != 0)
    throw bad_data("{}: {} attention heads are not a multiple of {} key/value heads", name, config.heads,
                   config.kv_heads);
  if (!keys.has("head_dim") && architecture.head_width == 0 && config.width % config.heads != 0)
    throw bad_data("{}: hidden_size {} is not a multiple of {} attention heads", name, config.width,
                   config.heads);
  const int64_t by_heads = std::max<int64_t>(1, config.width / config.heads);
  config.head_width =
      keys.count("head_dim", architecture.head_width > 0 ? architecture.head_width : by_heads);
  config.rope = read_rope(keys, architecture.theta, config.positions);
  config.rotates.assign(static_cast<size_t>(config.blocks), true);
  config.windows.assign(static_cast<size_t>(config.blocks), 0);
  architecture.read(keys, config);
  if (config.head_width % 2 != 0)
    throw bad_data("{}: heads of width {} cannot be rotated, which takes an even one", name,
                   config.head_width);
  return config;
}

}  // namespace mcompress
