#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include <fmt/ranges.h>

#include "architecture.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/gguf.h"
#include "source.h"

namespace mcompress {

namespace {

constexpr int64_t kMostPositions = int64_t{1} << 32;

// Reads metadata with its type; what is missing is named.
class GgufKeys {
 public:
  GgufKeys(const GgufFile& file, const std::string& path, std::string architecture)
      : file_(file), path_(path), architecture_(std::move(architecture)) {}

  template <typename Value>
  std::optional<Value> find(const std::string& key) const {
    const auto found = file_.metadata.find(architecture_ + "." + key);
    if (found == file_.metadata.end()) return std::nullopt;
    const auto* value = std::get_if<Value>(&found->second);
    if (value == nullptr)
      throw bad_data("GGUF file '{}': key '{}.{}' is not {}", path_, architecture_, key,
                     std::is_same_v<Value, int64_t>  ? "a whole number"
                     : std::is_same_v<Value, double> ? "a number"
                                                     : "a text");
    return *value;
  }
  int64_t count(const std::string& key, std::optional<int64_t> otherwise = {},
                int64_t most = int64_t{1} << 24, int64_t least = 1) const {
    const std::optional<int64_t> value = find<int64_t>(key);
    if (!value && otherwise) return *otherwise;
    if (!value) throw bad_data("GGUF file '{}' lacks the key '{}.{}'", path_, architecture_, key);
    if (*value < least || *value > most)
      throw bad_data("GGUF file '{}': key '{}.{}' is {}, and should be from {} to {}", path_, architecture_,
                     key, *value, least, most);
    return *value;
  }
  // Above 0.
  double number(const std::string& key, std::optional<double> otherwise = {}) const {
    const std::optional<double> value = find<double>(key);
    if (!value && otherwise) return *otherwise;
    if (!value) throw bad_data("GGUF file '{}' lacks the key '{}.{}'", path_, architecture_, key);
    if (!(*value > 0) || !std::isfinite(*value))
      throw bad_data("GGUF file '{}': key '{}.{}' is {}, and should be a number above 0", path_,
                     architecture_, key, *value);
    // The shortest decimal of the float32, as config.json has it: 1e-05 and not 9.99999974737875e-06.
    return std::strtod(fmt::format("{}", static_cast<float>(*value)).c_str(), nullptr);
  }

 private:
  const GgufFile& file_;
  const std::string& path_;
  std::string architecture_;
};

// One block in `pattern` attends to everything, the others to a window where there is one.
void set_windows(int64_t window, int64_t pattern, DecoderConfig& config) {
  for (size_t i = 0; i < config.windows.size(); ++i)
    config.windows[i] = (static_cast<int64_t>(i) + 1) % pattern == 0 ? 0 : window;
}

// The converter has added the 1 to the norms' weights.
void read_gemma(const GgufKeys&, DecoderConfig& config) {
  config.activation = Activation::kTanhGelu;
  config.embedding_scale = std::sqrt(static_cast<double>(config.width));
}

// Files do not say how scores are scaled; the largest models differ (llama-model.cpp).
void scale_scores(int64_t blocks_of_largest, DecoderConfig& config) {
  const int64_t width = config.blocks == blocks_of_largest ? config.width / config.heads : config.head_width;
  config.score_scale = 1 / std::sqrt(static_cast<double>(width));
}

void read_gemma2(const GgufKeys& keys, DecoderConfig& config) {
  read_gemma(keys, config);
  config.closing_norms = true;
  config.score_cap = keys.number("attn_logit_softcapping", 50);
  config.logit_cap = keys.number("final_logit_softcapping", 30);
  scale_scores(46, config);
  set_windows(keys.count("attention.sliding_window", 4096, kMostPositions), 2, config);
}

void read_gemma3(const GgufKeys& keys, DecoderConfig& config) {
  read_gemma(keys, config);
  config.closing_norms = config.head_norm = true;
  config.window_rope = Rope{.theta = keys.number("rope.freq_base_swa", 10000)};
  scale_scores(62, config);
  set_windows(keys.count("attention.sliding_window", 0, kMostPositions, 0), 6, config);
  config.logit_cap = keys.number("final_logit_softcapping", 0);
}

void read_phi3(const GgufKeys& keys, DecoderConfig& config) {
  config.names = gguf_names(true, true);
  if (const int64_t window = keys.find<int64_t>("attention.sliding_window").value_or(0); window > 0)
    config.windows.assign(config.windows.size(), window);
}

void read_gpt2(const GgufKeys&, DecoderConfig& config) {
  make_ungated(config);
  config.activation = Activation::kTanhGelu;
  config.names = gguf_names(true, false);
}

// Every fourth block rotates no positions, which no key says.
void read_smollm3(const GgufKeys&, DecoderConfig& config) {
  for (size_t i = 3; i < config.rotates.size(); i += 4) config.rotates[i] = false;
}

void read_qwen3(const GgufKeys&, DecoderConfig& config) { config.head_norm = true; }

struct GgufArchitecture {
  std::string_view name;
  void (*read)(const GgufKeys& keys, DecoderConfig& config) = [](const GgufKeys&, DecoderConfig&) {};
  bool rotates_parts = false;
  double theta = 10000;
  const char* epsilon = "attention.layer_norm_rms_epsilon";
};

constexpr std::array<GgufArchitecture, 9> kKnown = {
    {{.name = "gemma", .read = read_gemma},
     {.name = "gemma2", .read = read_gemma2},
     {.name = "gemma3", .read = read_gemma3, .theta = 1e6},
     {.name = "gpt2", .read = read_gpt2, .epsilon = "attention.layer_norm_epsilon"},
     {.name = "llama"},
     {.name = "phi3", .read = read_phi3, .rotates_parts = true},
     {.name = "qwen2"},
     {.name = "qwen3", .read = read_qwen3},
     {.name = "smollm3", .read = read_smollm3}}};

const GgufArchitecture& architecture_of(const GgufFile& file, const std::string& path) {
  const auto* name = find_value<std::string>(file, "general.architecture");
  if (name == nullptr) throw bad_data("GGUF file '{}' lacks the key 'general.architecture'", path);
  std::vector<std::string_view> names;
  for (const GgufArchitecture& known : kKnown) {
    if (known.name == *name) return known;
    names.push_back(known.name);
  }
  throw unsupported("GGUF file '{}': architecture '{}' cannot be run; known are {}", path, *name,
                    fmt::join(names, ", "));
}

void read_rope(const GgufFile& file, const GgufKeys& keys, const GgufArchitecture& architecture,
               const std::string& path, DecoderConfig& config) {
  Rope& rope = config.rope;
  config.rotated_width = keys.count("rope.dimension_count", config.head_width);
  const bool fits = architecture.rotates_parts ? config.rotated_width <= config.head_width
                                               : config.rotated_width == config.head_width;
  if (!fits || config.rotated_width % 2 != 0)
    throw unsupported("GGUF file '{}': heads of width {} are rotated by {}, which is not known", path,
                      config.head_width, config.rotated_width);
  rope.theta = keys.number("rope.freq_base", architecture.theta);
  rope.original_positions =
      keys.count("rope.scaling.original_context_length", config.positions, kMostPositions);
  // As llama.cpp: a factor without a type scales linearly, and older files call it otherwise.
  const double factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0));
  constexpr double kMostFactor = 1e6;
  if (factor > kMostFactor)
    throw bad_data("GGUF file '{}': key '{}.rope.scaling.factor' is {}, and should be {} at most", path,
                   architecture.name, factor, kMostFactor);
  const std::string scaling = keys.find<std::string>("rope.scaling.type").value_or("linear");
  for (const char* key : {"rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor",
                          "rope.scaling.yarn_attn_factor"}) {
    if (keys.number(key, 0.0) != 0) throw unsupported("GGUF file '{}': key '{}' is not known", path, key);
  }
  const double attention = keys.number("rope.scaling.attn_factor", 1.0);
  if (find_tensor(file, kLongFactors) != nullptr || find_tensor(file, kShortFactors) != nullptr) {
    rope.scaling = RopeScaling::kLongrope;
    rope.attention_factor = attention;
  } else if (scaling == "yarn" && factor > 0) {
    rope.scaling = RopeScaling::kYarn;
    rope.factor = factor;
    rope.attention_factor = attention * (factor > 1 ? 0.1 * std::log(factor) + 1 : 1);
    rope.beta_fast = keys.number("rope.scaling.yarn_beta_fast", rope.beta_fast);
    rope.beta_slow = keys.number("rope.scaling.yarn_beta_slow", rope.beta_slow);
  } else if (scaling == "linear" && factor > 0) {
    rope.scaling = RopeScaling::kLinear;
    rope.factor = factor;
  } else if (scaling != "none" && scaling != "linear") {
    throw unsupported("GGUF file '{}': rope scaling '{}'{} is not known; none, linear and yarn are", path,
                      scaling, factor > 0 ? "" : " without a factor");
  }
}

}  // namespace

bool rotates_neighbours(std::string_view architecture) {
  return architecture == "llama" || architecture == "smollm3";
}

DecoderNames gguf_names(bool joined_inputs, bool joined_gate) {
  DecoderNames names;
  names.base = "";
  names.embedding = "token_embd";
  names.positions = "position_embd";
  names.final_norm = "output_norm";
  names.head = "output";
  names.block = "blk.";
  names.attention_norm = "attn_norm";
  names.closing_attention_norm = "post_attention_norm";
  names.feed_forward_norm = "ffn_norm";
  names.closing_feed_forward_norm = "post_ffw_norm";
  names.query = "attn_q";
  names.key = "attn_k";
  names.value = "attn_v";
  names.output = "attn_output";
  names.query_norm = "attn_q_norm";
  names.key_norm = "attn_k_norm";
  names.gate = "ffn_gate";
  names.up = "ffn_up";
  names.down = "ffn_down";
  if (joined_inputs) names.query_key_value = "attn_qkv";
  if (joined_gate) names.gate_up = "ffn_up";
  return names;
}

DecoderConfig gguf_decoder_config(const GgufFile& file, const std::string& path) {
  const GgufArchitecture& architecture = architecture_of(file, path);
  const GgufKeys keys(file, path, std::string(architecture.name));
  DecoderConfig config;
  config.model_type = architecture.name;
  config.names = gguf_names(false, false);
  config.width = keys.count("embedding_length");
  config.inner = keys.count("feed_forward_length");
  config.blocks = keys.count("block_count", {}, 10'000);
  config.heads = keys.count("attention.head_count");
  config.kv_heads = keys.count("attention.head_count_kv", config.heads);
  config.positions = keys.count("context_length", {}, kMostPositions);
  config.norm_epsilon = keys.number(architecture.epsilon);
  if (config.heads % config.kv_heads != 0)
    throw bad_data("GGUF file '{}': {} attention heads are not a multiple of {} key/value heads", path,
                   config.heads, config.kv_heads);
  if (!keys.find<int64_t>("attention.key_length") && config.width % config.heads != 0)
    throw bad_data("GGUF file '{}': {}.embedding_length {} is not a multiple of {} attention heads", path,
                   architecture.name, config.width, config.heads);
  config.head_width = keys.count("attention.key_length", std::max<int64_t>(1, config.width / config.heads));
  config.score_scale = 1 / std::sqrt(static_cast<double>(config.head_width));
  if (const int64_t values = keys.count("attention.value_length", config.head_width);
      values != config.head_width)
    throw unsupported(
        "GGUF file '{}': heads have keys of width {} and values of width {}, which is not known", path,
        config.head_width, values);
  if (keys.find<int64_t>("expert_count").value_or(0) > 0)
    throw unsupported("GGUF file '{}': {} with experts is not known", path, architecture.name);
  const GgufTensor* embedding = find_tensor(file, "token_embd.weight");
  if (embedding == nullptr || embedding->shape.empty())
    throw bad_data("GGUF file '{}' lacks the tensor 'token_embd.weight'", path);
  config.vocabulary = embedding->shape[0];
  config.tied_head = find_tensor(file, "output.weight") == nullptr;
  config.qkv_bias = find_tensor(file, "blk.0.attn_q.bias") != nullptr;
  config.output_bias = find_tensor(file, "blk.0.attn_output.bias") != nullptr;
  config.mlp_bias = find_tensor(file, "blk.0.ffn_gate.bias") != nullptr;
  const auto blocks = static_cast<size_t>(config.blocks);
  config.rotates.assign(blocks, true);
  config.windows.assign(blocks, 0);
  read_rope(file, keys, architecture, path, config);
  architecture.read(keys, config);
  const bool windowed =
      std::any_of(config.windows.begin(), config.windows.end(), [](int64_t w) { return w > 0; });
  if (!windowed && keys.find<int64_t>("attention.sliding_window").value_or(0) > 0)
    throw unsupported("GGUF file '{}': sliding windows are not known for {}", path, config.model_type);
  return config;
}

}  // namespace mcompress
