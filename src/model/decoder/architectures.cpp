#include <cmath>
#include <tuple>
#include <vector>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "architecture.h"
#include "mcompress/base/error.h"
#include "rope_config.h"

namespace mcompress {

namespace {

using nlohmann::json;

// Refuses a model with a switch that is not as usual, which changes what it computes and is not implemented.
void refuse_unless(bool expected, const ConfigKeys& keys, const char* key) {
  if (keys.flag(key, expected) != expected)
    throw bad_data("{}: a {} model with '{}' {} cannot be run", keys.name(), keys.text("model_type", ""), key,
                   !expected);
}

// The key where it is there, the architecture's own where it is absent, none where it is null.
int64_t read_window(const ConfigKeys& keys, int64_t otherwise) {
  return keys.is_null("sliding_window") ? 0 : keys.count("sliding_window", otherwise, int64_t{1} << 32);
}

// Sets which blocks attend to a window only, 0 for none: layer_types names them, or else `is_windowed` tells.
void set_windows(const ConfigKeys& keys, int64_t window, const std::function<bool(size_t block)>& is_windowed,
                 DecoderConfig& config) {
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
        throw bad_data("{}: layer {} has sliding_attention, and there is no sliding window", keys.name(), i);
    }
    config.windows[i] = windowed ? window : 0;
  }
}

bool every_block(size_t) { return true; }

// Qwen's windows are on the blocks from max_window_layers on.
void read_qwen_windows(const ConfigKeys& keys, DecoderConfig& config) {
  const int64_t window = keys.flag("use_sliding_window", false) ? read_window(keys, 4096) : 0;
  const int64_t first = keys.count("max_window_layers", 28, int64_t{1} << 24, 0);
  set_windows(
      keys, window, [&](size_t block) { return static_cast<int64_t>(block) >= first; }, config);
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

// Biases of q, k, v and the output layer.
void read_attention_bias(const ConfigKeys& keys, DecoderConfig& config) {
  config.qkv_bias = config.output_bias = keys.flag("attention_bias", false);
}

// arXiv:2403.08295. Norms multiply by 1 + weight, and the embedding is scaled.
void read_gemma(const ConfigKeys& keys, DecoderConfig& config) {
  refuse_unless(false, keys, "use_bidirectional_attention");
  read_attention_bias(keys, config);
  config.norm = NormKind::kOffsetRms;
  config.embedding_scale = std::sqrt(static_cast<double>(config.width));
}

double read_cap(const ConfigKeys& keys, const char* key, double otherwise) {
  return keys.is_null(key) ? 0 : keys.number(key, otherwise);
}

// What Gemma 2 and 3 share: norms on both sides of a layer, and one block in `pattern` without a window.
void read_gemma_blocks(const ConfigKeys& keys, int64_t pattern, DecoderConfig& config) {
  read_gemma(keys, config);
  config.closing_norms = true;
  config.names.closing_attention_norm = "post_attention_layernorm";
  config.names.feed_forward_norm = "pre_feedforward_layernorm";
  config.names.closing_feed_forward_norm = "post_feedforward_layernorm";
  config.score_scale = 1 / std::sqrt(keys.number("query_pre_attn_scalar", 256));
  set_windows(
      keys, read_window(keys, 4096),
      [&](size_t block) { return (static_cast<int64_t>(block) + 1) % pattern != 0; }, config);
}

// arXiv:2408.00118. Scores and logits are capped.
void read_gemma2(const ConfigKeys& keys, DecoderConfig& config) {
  read_gemma_blocks(keys, 2, config);
  config.score_cap = read_cap(keys, "attn_logit_softcapping", 50);
  config.logit_cap = read_cap(keys, "final_logit_softcapping", 30);
}

// arXiv:2503.19786. Blocks with a window have a rotation of their own; of the caps transformers reads the
// last.
void read_gemma3(const ConfigKeys& keys, DecoderConfig& config) {
  read_gemma_blocks(keys, keys.count("sliding_window_pattern", 6), config);
  config.head_norm = true;
  config.logit_cap = read_cap(keys, "final_logit_softcapping", 0);
  const double local_theta = keys.number("rope_local_base_freq", 10000);
  config.window_rope = Rope{.theta = local_theta};
  if (!has_rope_by_kind(keys)) return;
  for (const auto& [key, rope, theta] :
       {std::tuple("full_attention", &config.rope, keys.number("rope_theta", 1e6)),
        std::tuple("sliding_attention", &*config.window_rope, local_theta)}) {
    *rope = read_rope_of_kind(keys, key, {theta, config.positions, 0, config.rotated_width});
  }
}

void read_phi3(const ConfigKeys& keys, DecoderConfig& config) {
  config.names.query_key_value = "self_attn.qkv_proj";
  config.names.gate_up = "mlp.gate_up_proj";
  // Whatever layer_types may say.
  config.windows.assign(config.windows.size(), read_window(keys, 0));
}

void read_gpt2(const ConfigKeys& keys, DecoderConfig& config) {
  refuse_unless(true, keys, "scale_attn_weights");
  refuse_unless(false, keys, "scale_attn_by_inverse_layer_idx");
  refuse_unless(false, keys, "add_cross_attention");
  make_ungated(config);
  config.transposed = true;
  DecoderNames& names = config.names;
  names.base = "transformer.";
  names.embedding = "wte";
  names.positions = "wpe";
  names.final_norm = "ln_f";
  names.block = "h.";
  names.attention_norm = "ln_1";
  names.feed_forward_norm = "ln_2";
  names.query_key_value = "attn.c_attn";
  names.output = "attn.c_proj";
  names.up = "mlp.c_fc";
  names.down = "mlp.c_proj";
}

void read_opt(const ConfigKeys& keys, DecoderConfig& config) {
  refuse_unless(true, keys, "do_layer_norm_before");
  refuse_unless(true, keys, "layer_norm_elementwise_affine");
  refuse_unless(false, keys, "_remove_final_layer_norm");
  const int64_t embedded = keys.count("word_embed_proj_dim", config.width);
  if (embedded != config.width)
    throw bad_data("{}: an embedding of width {}, projected to {}, cannot be run", keys.name(), embedded,
                   config.width);
  make_ungated(config);
  if (!keys.flag("enable_bias", true)) config.qkv_bias = config.output_bias = config.mlp_bias = false;
  config.first_position = 2;  // the first two rows are of padding
  DecoderNames& names = config.names;
  names.base = "model.decoder.";
  names.positions = "embed_positions";
  names.final_norm = "final_layer_norm";
  names.attention_norm = "self_attn_layer_norm";
  names.feed_forward_norm = "final_layer_norm";
  names.output = "self_attn.out_proj";
  names.up = "fc1";
  names.down = "fc2";
}

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> kKnown = {
      {.model_type = "gemma",
       .read = read_gemma,
       .kv_heads = 16,
       .head_width = 256,
       .positions = 8192,
       .activation = "gelu_pytorch_tanh",
       .tied_head = true},
      {.model_type = "gemma2",
       .read = read_gemma2,
       .keys = {.activation = "hidden_activation"},
       .kv_heads = 4,
       .head_width = 256,
       .positions = 8192,
       .activation = "gelu_pytorch_tanh",
       .tied_head = true},
      {.model_type = "gemma3_text",
       .read = read_gemma3,
       .keys = {.activation = "hidden_activation"},
       .kv_heads = 4,
       .head_width = 256,
       .positions = 131072,
       .theta = 1e6,
       .activation = "gelu_pytorch_tanh",
       .tied_head = true},
      {.model_type = "gpt2",
       .read = read_gpt2,
       .keys = {.width = "n_embd",
                .inner = "n_inner",
                .blocks = "n_layer",
                .heads = "n_head",
                .positions = "n_positions",
                .epsilon = "layer_norm_epsilon",
                .activation = "activation_function"},
       .positions = 1024,
       .norm_epsilon = 1e-5,
       .activation = "gelu_new",
       .tied_head = true},
      {.model_type = "llama",
       .read =
           [](const ConfigKeys& keys, DecoderConfig& config) {
             read_attention_bias(keys, config);
             config.mlp_bias = keys.flag("mlp_bias", false);
           }},
      {.model_type = "mistral",
       .read = [](const ConfigKeys& keys,
                  DecoderConfig& config) { set_windows(keys, read_window(keys, 4096), every_block, config); },
       .kv_heads = 8,
       .positions = 4096 * 32},
      {.model_type = "opt",
       .read = read_opt,
       .keys = {.inner = "ffn_dim", .epsilon = nullptr, .activation = "activation_function"},
       .norm_epsilon = 1e-5,
       .activation = "relu",
       .tied_head = true},
      {.model_type = "phi3",
       .read = read_phi3,
       .positions = 4096,
       .norm_epsilon = 1e-5,
       .original_positions = 4096,
       .rotates_parts = true},
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
             read_attention_bias(keys, config);
             read_qwen_windows(keys, config);
           },
       .kv_heads = 32,
       .head_width = 128,
       .positions = 32768},
      {.model_type = "smollm3",
       .read =
           [](const ConfigKeys& keys, DecoderConfig& config) {
             read_attention_bias(keys, config);
             config.mlp_bias = keys.flag("mlp_bias", false);
             read_rotations(keys, config);
             const bool windowed = keys.flag("use_sliding_window", false);
             set_windows(
                 keys, windowed ? read_window(keys, 0) : 0,
                 [&](size_t block) { return !config.rotates[block]; }, config);
           },
       .kv_heads = 4,
       .positions = 32768,
       .theta = 2e6,
       .tied_head = true},
  };
  return kKnown;
}

}  // namespace

void make_ungated(DecoderConfig& config) {
  config.norm = NormKind::kLayer;
  config.gated = false;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  config.first_position = 0;
  config.kv_heads = config.heads;
  config.rotates.assign(static_cast<size_t>(config.blocks), false);
}

const Architecture& architecture_of(const std::string& model_type, const std::string& name) {
  std::vector<std::string_view> known;
  for (const Architecture& architecture : architectures()) {
    if (architecture.model_type == model_type) return architecture;
    known.push_back(architecture.model_type);
  }
  throw bad_data("{}: model type '{}' cannot be run; known are {}", name, model_type, fmt::join(known, ", "));
}

}  // namespace mcompress
