#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/formats/checkpoint_files.h"

namespace mcompress {

// How the angles of rotary position embedding are stretched for long texts, as transformers names it
// (modeling_rope_utils.py).
enum class RopeScaling { kNone, kLinear, kDynamic, kLlama3, kYarn };
struct Rope {
  double theta = 10000;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;            // kLlama3
  double beta_fast = 32, beta_slow = 1, attention_factor = 1;  // kYarn
  bool truncate = true;                                        // kYarn: bounds as whole dimensions
  std::vector<double> divisors = {};  // of each frequency, where the file lists them (GGUF)
  int64_t original_positions = 0;     // that the model was trained on first
};

// A decoder-only language model of the Llama kind: blocks of attention and a gated feed-forward, each behind
// an RMSNorm. What sets its architectures apart are these values.
struct DecoderConfig {
  std::string model_type;  // "llama"
  int64_t vocabulary = 0, width = 0, inner = 0, blocks = 0, heads = 0, kv_heads = 0, head_width = 0;
  int64_t positions = 0;  // that it was trained on
  double norm_epsilon = 1e-6;
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  bool head_norm = false;  // q and k are normalized a head
  bool tied_head = false;  // the embedding is the output layer too
  Rope rope;
  std::vector<bool> rotates;     // by block, whether q and k are rotated
  std::vector<int64_t> windows;  // by block, how many tokens back attention reaches; 0: all
};

// Reads a config.json as transformers 4 or 5 writes it. Throws Error(65) for an architecture that is not
// known, listing those that are, and for numbers that fit no model.
DecoderConfig read_decoder_config(const std::string& path);

// The model of a Hugging Face folder or a GGUF file (llama, qwen2, qwen3; dequantized as it is read). Its
// weights stay in the map of the file and are read a block at a time.
class Decoder {
 public:
  // `compute`: float32 or bfloat16. Throws Error(65) where a tensor is missing, has another shape, or is one
  // that the architecture has none of.
  Decoder(const std::string& path, at::ScalarType compute);
  ~Decoder();
  Decoder(Decoder&&) noexcept;

  const DecoderConfig& config() const;

  // ids int64 [n, length] to hidden states [n, length, width] of the computing type. Throws Error(65) for an
  // id outside the vocabulary.
  at::Tensor embed(const at::Tensor& ids) const;

  // Runs block number `block` on hidden states, in place, and gives its pages back. Throws Error(65) naming
  // the block and the window, counted from `first_window`, that gets NaN or infinity.
  void run_block(int64_t block, const at::Tensor& hidden, int64_t first_window = 0) const;

  // Hidden states [rows, width] behind the last block to logits, float32 [rows, vocabulary].
  at::Tensor logits(const at::Tensor& hidden) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mcompress
