#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "config_keys.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// What the keys of a config.json are called.
struct KeyNames {
  const char* width = "hidden_size";
  const char* inner = "intermediate_size";
  const char* blocks = "num_hidden_layers";
  const char* heads = "num_attention_heads";
  const char* positions = "max_position_embeddings";
  const char* epsilon = "rms_norm_eps";  // nullptr: it is not read
  const char* activation = "hidden_act";
};

// What an architecture has that its config.json does not say, and the values of keys that it may leave out.
struct Architecture {
  std::string_view model_type;
  void (*read)(const ConfigKeys& keys, DecoderConfig& config) = [](const ConfigKeys&, DecoderConfig&) {};
  KeyNames keys = {};
  int64_t kv_heads = 0, head_width = 0;  // 0: of all heads; the width by the heads
  int64_t positions = 2048;
  double theta = 10000, norm_epsilon = 1e-6;
  const char* activation = "silu";
  bool tied_head = false;
  int64_t original_positions = 0;  // those before longrope where the file's root says none; 0: as rope says
  bool rotates_parts = false;      // a head is rotated up to its partial_rotary_factor
};

// Throws Error(65) with the list of those that are known. `name` is what the message calls the file.
const Architecture& architecture_of(const std::string& model_type, const std::string& name);

// What a config.json says; throws as read_decoder_config() does.
DecoderConfig decoder_config_of(const nlohmann::json& root, const std::string& name);

// The block of GPT-2 and OPT: layers with biases behind LayerNorms, no gate, and positions that are learned.
void make_ungated(DecoderConfig& config);

}  // namespace mcompress
