#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/packed_layer.h"

namespace mcompress {

// How the angles of rotary position embedding are stretched for long texts, as transformers names it
// (modeling_rope_utils.py).
enum class RopeScaling { kNone, kLinear, kDynamic, kLlama3, kYarn, kLongrope };
struct Rope {
  double theta = 10000;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;            // kLlama3
  double beta_fast = 32, beta_slow = 1, attention_factor = 1;  // kYarn; the last of kLongrope too
  bool truncate = true;                                        // kYarn: bounds as whole dimensions
  // What each frequency is divided by: `divisors`, and beyond the positions that the model was trained on
  // first `long_divisors`. Empty for 1.
  std::vector<double> divisors = {}, long_divisors = {};
  int64_t original_positions = 0;  // that the model was trained on first
};

enum class NormKind { kRms, kOffsetRms, kLayer };  // kOffsetRms: times 1 + weight (Gemma)
enum class Activation { kSilu, kGelu, kTanhGelu, kRelu };

// What the tensors of an architecture are called, without ".weight" and ".bias". Of a block, they follow
// `base`, `block`, its number and a dot.
struct DecoderNames {
  std::string base = "model.", embedding = "embed_tokens", positions = "", final_norm = "norm";
  std::string head = "lm_head";  // without the base
  std::string block = "layers.";
  std::string attention_norm = "input_layernorm", closing_attention_norm = "";
  std::string feed_forward_norm = "post_attention_layernorm", closing_feed_forward_norm = "";
  std::string query = "self_attn.q_proj", key = "self_attn.k_proj", value = "self_attn.v_proj";
  std::string query_key_value = "";  // where set, one layer, whose rows are the three after each other
  std::string output = "self_attn.o_proj";
  std::string query_norm = "self_attn.q_norm", key_norm = "self_attn.k_norm";
  std::string gate = "mlp.gate_proj", up = "mlp.up_proj", down = "mlp.down_proj";
  std::string gate_up = "";  // where set, one layer, whose rows are gate and up
};

// A decoder-only language model: blocks of attention and a feed-forward, each behind a norm. What sets
// architectures apart are these values.
struct DecoderConfig {
  std::string model_type;  // "llama"
  DecoderNames names;
  int64_t vocabulary = 0, width = 0, inner = 0, blocks = 0, heads = 0, kv_heads = 0, head_width = 0;
  int64_t positions = 0;  // that it was trained on
  NormKind norm = NormKind::kRms;
  double norm_epsilon = 1e-6;
  bool closing_norms = false;  // what attention and feed-forward give is normalized before it is added
  bool head_norm = false;      // q and k are normalized a head
  Activation activation = Activation::kSilu;
  bool gated = true;  // down(activation(gate(x)) * up(x)); else down(activation(up(x)))
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  bool transposed = false;  // weights are stored [inputs, outputs]
  bool tied_head = false;   // the embedding is the output layer too
  double embedding_scale = 1;
  std::optional<int64_t> first_position;  // of positions that are learned and added to the embedding
  double score_scale = 0;                 // of attention; 1 / sqrt(head width) where a file says nothing
  double score_cap = 0, logit_cap = 0;    // x becomes cap * tanh(x / cap); 0: it stays
  Rope rope;
  std::optional<Rope> window_rope;  // of blocks with a window, where theirs differs
  int64_t rotated_width = 0;        // of each head, from its first value on
  std::vector<bool> rotates;        // by block, whether q and k are rotated
  std::vector<int64_t> windows;     // by block, how many tokens back attention reaches; 0: all

  std::string quantization;             // "compressed-tensors, 8 bits"; empty where weights are floating
  bool rounds_inputs = false;           // those of quantized layers, to 8 bits a token
  std::optional<PackedForm> form = {};  // of packed layers

  std::string block_name(int64_t block) const;  // "model.layers.3."
};

// A linear layer as the checkpoint stores it: its tensors are the name with ".weight" and, where it has a
// bias,
// ".bias".
struct DecoderLayer {
  std::string name;  // "model.layers.3.self_attn.q_proj"
  int64_t outputs = 0, inputs = 0;
  bool biased = false;
};

// The layers of a block in the order in which they run, by stage. Those of a stage have the same inputs,
// which need what the stages before give: q, k and v; output; gate and up; down.
std::vector<std::vector<DecoderLayer>> stages_of(const DecoderConfig& config, int64_t block);

// Reads a config.json as transformers 4 or 5 writes it. Throws Error(65) for an architecture that is not
// known, listing those that are, and for numbers that fit no model.
DecoderConfig read_decoder_config(const std::string& path);

// The configuration of the model of a Hugging Face folder or a GGUF file.
DecoderConfig read_model_config(const std::string& path);

// One block in memory with the hidden states that go through it. Its layers can be replaced while it runs a
// stage at a time, each layer once.
class DecoderBlock {
 public:
  ~DecoderBlock();
  DecoderBlock(DecoderBlock&&) noexcept;

  // Gives `use` the inputs [tokens, inputs] of the layers of a stage, some windows at a time. Stages are run
  // in order, each once. Throws Error(65) naming the layer and the window of inputs that are NaN or infinite.
  void run_stage(size_t stage, const std::function<void(const at::Tensor& inputs)>& use);
  // What follows the last stage: the hidden states become those behind the block.
  void finish();
  // All of it at once, with less memory and the same result.
  void run();

  // `weight`: [outputs, inputs] of any floating type.
  void set_weight(const std::string& layer, const at::Tensor& weight);

 private:
  friend class Decoder;
  struct Impl;
  explicit DecoderBlock(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// How a model is computed: in float32 or bfloat16; products of the layers of blocks in that type or in 8
// bits, as int8_matrix.h says, which is for float32.
struct DecoderCompute {
  at::ScalarType type = at::kFloat;
  bool int8_layers = false;

  DecoderCompute(at::ScalarType of) : type(of) {}
  DecoderCompute(at::ScalarType of, bool int8) : type(of), int8_layers(int8) {}
};

// The model of a Hugging Face folder or a GGUF file (dequantized as it is read). Its weights stay in the map
// of the file and are read a block at a time.
class Decoder {
 public:
  // Throws Error(65) where a tensor is missing, has another shape, or is one that the architecture has none
  // of.
  Decoder(const std::string& path, DecoderCompute compute);
  const DecoderCompute& compute() const;
  ~Decoder();
  Decoder(Decoder&&) noexcept;

  const DecoderConfig& config() const;

  // ids int64 [n, length] to hidden states [n, length, width] of the computing type. Throws Error(65) for an
  // id outside the vocabulary.
  at::Tensor embed(const at::Tensor& ids) const;

  // Runs block number `block` on hidden states, in place, and gives its pages back. Throws Error(65) naming
  // the block and the window, counted from `first_window`, that gets NaN or infinity.
  void run_block(int64_t block, const at::Tensor& hidden, int64_t first_window = 0) const;

  // The block on hidden states, which it changes in place. It reads from this model, which must live longer.
  // They may be of a narrower type than the computing one; values between stages are kept in that too.
  DecoderBlock open_block(int64_t block, const at::Tensor& hidden, int64_t first_window = 0) const;

  // The weight of a layer of a block or of the head, float32 [outputs, inputs].
  at::Tensor layer_weight(const std::string& layer) const;

  // Any other tensor, as the file has it but in float32.
  at::Tensor stored(const std::string& name) const;

  // Runs with this one from now on, [vocabulary, width] of any floating type; a head that is tied to it too.
  void set_embedding(const at::Tensor& weight);

  // Inputs of the head: hidden states behind the last block, normalized.
  at::Tensor head_inputs(const at::Tensor& hidden) const;

  // Hidden states [rows, width] behind the last block to logits, float32 [rows, vocabulary].
  at::Tensor logits(const at::Tensor& hidden) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mcompress
