#include <array>
#include <cmath>
#include <functional>
#include <string_view>
#include <utility>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

namespace {

using nlohmann::json;

// Typed access to the keys of a config.json. A key that is null counts as absent, as in transformers.
class Keys {
 public:
  Keys(const json& object, std::string name) : object_(object), name_(std::move(name)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const json& operator[](const char* key) const { return object_[key]; }
  const std::string& name() const { return name_; }

  int64_t count(const char* key, int64_t otherwise, int64_t most = int64_t{1} << 24) const {
    if (!has(key)) return otherwise;
    const json& value = object_[key];
    if (!value.is_number_integer() || value.get<double>() < 1 ||
        value.get<double>() > static_cast<double>(most))
      throw bad_data("{}: '{}' is {}, and should be a whole number from 1 to {}", name_, key, value.dump(),
                     most);
    return value.get<int64_t>();
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    const json& value = object_[key];
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>()))
      throw bad_data("{}: '{}' is {}, and should be a number above 0", name_, key, value.dump());
    return value.get<double>();
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_[key].is_boolean())
      throw bad_data("{}: '{}' is {}, and should be true or false", name_, key, object_[key].dump());
    return object_[key].get<bool>();
  }
  std::string text(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_[key].is_string())
      throw bad_data("{}: '{}' is {}, and should be a text", name_, key, object_[key].dump());
    return object_[key].get<std::string>();
  }

 private:
  const json& object_;
  std::string name_;
};

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
Rope read_rope(const Keys& keys, double default_theta, int64_t positions) {
  static const json kEmpty = json::object();
  const char* key = keys.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json& object = keys.has(key) ? keys[key] : kEmpty;
  if (!object.is_object()) throw bad_data("{}: '{}' is not an object", keys.name(), key);
  const Keys scaled(object, keys.name() + ", " + key);
  Rope rope;
  rope.theta = scaled.number("rope_theta", keys.number("rope_theta", default_theta));
  rope.scaling = scaling_named(scaled.text("rope_type", scaled.text("type", "default")), keys.name());
  if (rope.scaling == RopeScaling::kNone) return rope;
  if (!scaled.has("factor")) throw bad_data("{}: '{}' has no factor", keys.name(), key);
  rope.factor = scaled.number("factor", 1);
  rope.original_positions = scaled.count(
      "original_max_position_embeddings",
      keys.count("original_max_position_embeddings", positions, int64_t{1} << 32), int64_t{1} << 32);
  rope.low_freq_factor = scaled.number("low_freq_factor", rope.low_freq_factor);
  rope.high_freq_factor = scaled.number("high_freq_factor", rope.high_freq_factor);
  rope.beta_fast = scaled.number("beta_fast", rope.beta_fast);
  rope.beta_slow = scaled.number("beta_slow", rope.beta_slow);
  rope.truncate = scaled.flag("truncate", true);
  if (rope.scaling == RopeScaling::kYarn) {
    if (scaled.has("mscale") || scaled.has("mscale_all_dim"))
      throw bad_data("{}: yarn with mscale is not known", keys.name());
    const double grown = rope.factor <= 1 ? 1 : 0.1 * std::log(rope.factor) + 1;
    rope.attention_factor = scaled.number("attention_factor", grown);
  }
  return rope;
}

// Which blocks attend to a window only: layer_types names them, or all do where the model has a window.
void read_windows(const Keys& keys, bool all_blocks, DecoderConfig& config) {
  const auto blocks = static_cast<size_t>(config.blocks);
  const int64_t window = keys.count("sliding_window", 0, int64_t{1} << 32);
  config.windows.assign(blocks, all_blocks ? window : 0);
  if (!keys.has("layer_types")) return;
  const json& types = keys["layer_types"];
  if (!types.is_array() || types.size() != blocks)
    throw bad_data("{}: 'layer_types' is not a list of {} texts", keys.name(), blocks);
  for (size_t i = 0; i < blocks; ++i) {
    if (types[i] == "sliding_attention" && window > 0) {
      config.windows[i] = window;
    } else if (types[i] == "full_attention") {
      config.windows[i] = 0;
    } else {
      throw bad_data("{}: attention {} of layer {} is not known", keys.name(), types[i].dump(), i);
    }
  }
}

// Blocks without positions (SmolLM3): a list of ones and zeros, or every so many blocks.
void read_rotations(const Keys& keys, DecoderConfig& config) {
  const auto blocks = static_cast<size_t>(config.blocks);
  const int64_t interval = keys.count("no_rope_layer_interval", 4);
  for (size_t i = 0; i < blocks; ++i) config.rotates[i] = (static_cast<int64_t>(i) + 1) % interval != 0;
  if (!keys.has("no_rope_layers")) return;
  const json& layers = keys["no_rope_layers"];
  if (!layers.is_array() || layers.size() != blocks)
    throw bad_data("{}: 'no_rope_layers' is not a list of {} numbers", keys.name(), blocks);
  for (size_t i = 0; i < blocks; ++i) config.rotates[i] = layers[i] != 0;
}

// What an architecture has that config.json does not say, or says in its own keys.
struct Architecture {
  std::string_view model_type;
  std::function<void(const Keys&, DecoderConfig&)> read;
};

const std::array<Architecture, 5>& architectures() {
  static const std::array<Architecture, 5> kKnown = {{
      {"llama",
       [](const Keys& keys, DecoderConfig& config) {
         config.qkv_bias = config.output_bias = keys.flag("attention_bias", false);
         config.mlp_bias = keys.flag("mlp_bias", false);
       }},
      {"mistral", [](const Keys& keys, DecoderConfig& config) { read_windows(keys, true, config); }},
      {"qwen2",
       [](const Keys& keys, DecoderConfig& config) {
         config.qkv_bias = true;
         if (!keys.flag("use_sliding_window", false)) return;
         read_windows(keys, false, config);
         if (keys.has("layer_types")) return;
         for (int64_t i = keys.count("max_window_layers", 28); i < config.blocks; ++i)
           config.windows[static_cast<size_t>(i)] = keys.count("sliding_window", 4096, int64_t{1} << 32);
       }},
      {"qwen3",
       [](const Keys& keys, DecoderConfig& config) {
         config.head_width = keys.count("head_dim", 128);
         config.head_norm = true;
         config.qkv_bias = config.output_bias = keys.flag("attention_bias", false);
         if (keys.flag("use_sliding_window", false)) read_windows(keys, false, config);
       }},
      {"smollm3",
       [](const Keys& keys, DecoderConfig& config) {
         config.qkv_bias = config.output_bias = keys.flag("attention_bias", false);
         config.mlp_bias = keys.flag("mlp_bias", false);
         if (keys.flag("use_sliding_window", false)) read_windows(keys, false, config);
         read_rotations(keys, config);
       }},
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
  const Keys keys(root, name);
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
  config.kv_heads = keys.count("num_key_value_heads", config.heads);
  config.vocabulary = keys.count("vocab_size", 0);
  config.positions = keys.count("max_position_embeddings", 2048, int64_t{1} << 32);
  config.norm_epsilon = keys.number("rms_norm_eps", config.norm_epsilon);
  config.tied_head = keys.flag("tie_word_embeddings", config.model_type == "smollm3");
  const std::string activation = keys.text("hidden_act", "silu");
  if (activation != "silu") throw bad_data("{}: hidden_act '{}' is not known; silu is", name, activation);
  if (config.heads % config.kv_heads != 0)
    throw bad_data("{}: {} attention heads are not a multiple of {} key/value heads", name, config.heads,
                   config.kv_heads);
  if (!keys.has("head_dim") && config.model_type != "qwen3" && config.width % config.heads != 0)
    throw bad_data("{}: hidden_size {} is not a multiple of {} attention heads", name, config.width,
                   config.heads);
  config.head_width = keys.count("head_dim", std::max<int64_t>(1, config.width / config.heads));
  config.rope = read_rope(keys, config.model_type == "smollm3" ? 2e6 : 10000, config.positions);
  config.rotates.assign(static_cast<size_t>(config.blocks), true);
  config.windows.assign(static_cast<size_t>(config.blocks), 0);
  architecture.read(keys, config);
  if (config.head_width % 2 != 0)
    throw bad_data("{}: heads of width {} cannot be rotated, which takes an even one", name,
                   config.head_width);
  return config;
}

}  // namespace mcompress
