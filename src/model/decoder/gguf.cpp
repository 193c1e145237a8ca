#include "mcompress/formats/gguf.h"

#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"
#include "source.h"

namespace mcompress {

namespace {

constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kLayerNames = {
    {{"attn_norm", "input_layernorm"},
     {"ffn_norm", "post_attention_layernorm"},
     {"attn_q", "self_attn.q_proj"},
     {"attn_k", "self_attn.k_proj"},
     {"attn_v", "self_attn.v_proj"},
     {"attn_output", "self_attn.o_proj"},
     {"attn_q_norm", "self_attn.q_norm"},
     {"attn_k_norm", "self_attn.k_norm"},
     {"ffn_gate", "mlp.gate_proj"},
     {"ffn_up", "mlp.up_proj"},
     {"ffn_down", "mlp.down_proj"}}};

// blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; an unknown name stays as it is.
std::string name_in_transformers(const std::string& name) {
  if (name == "token_embd.weight") return "model.embed_tokens.weight";
  if (name == "output_norm.weight") return "model.norm.weight";
  if (name == "output.weight") return "lm_head.weight";
  constexpr std::string_view kBlock = "blk.";
  if (!name.starts_with(kBlock)) return name;
  const size_t first = name.find('.', kBlock.size()), last = name.rfind('.');
  if (first == std::string::npos || last <= first) return name;
  const std::string_view part = std::string_view(name).substr(first + 1, last - first - 1);
  for (const auto& [ours, theirs] : kLayerNames) {
    if (ours == part)
      return fmt::format("model.layers.{}.{}{}", name.substr(kBlock.size(), first - kBlock.size()), theirs,
                         name.substr(last));
  }
  return name;
}

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
      throw bad_data("GGUF file '{}': key '{}.{}' has another type than it should", path_, architecture_,
                     key);
    return *value;
  }
  int64_t count(const std::string& key, std::optional<int64_t> otherwise = {},
                int64_t most = int64_t{1} << 24) const {
    const std::optional<int64_t> value = find<int64_t>(key);
    if (!value && otherwise) return *otherwise;
    if (!value) throw bad_data("GGUF file '{}' lacks the key '{}.{}'", path_, architecture_, key);
    if (*value < 1 || *value > most)
      throw bad_data("GGUF file '{}': key '{}.{}' is {}, and should be from 1 to {}", path_, architecture_,
                     key, *value, most);
    return *value;
  }
  double number(const std::string& key, std::optional<double> otherwise = {}) const {
    const std::optional<double> value = find<double>(key);
    if (!value && otherwise) return *otherwise;
    if (!value || !(*value > 0) || !std::isfinite(*value))
      throw bad_data("GGUF file '{}': key '{}.{}' is missing or not above 0", path_, architecture_, key);
    // The shortest decimal of the float32, as config.json has it: 1e-05 and not 9.99999974737875e-06.
    return std::strtod(fmt::format("{}", static_cast<float>(*value)).c_str(), nullptr);
  }

 private:
  const GgufFile& file_;
  const std::string& path_;
  std::string architecture_;
};

const GgufTensor* tensor_named(const GgufFile& file, std::string_view name) {
  for (const GgufTensor& tensor : file.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

DecoderConfig config_of(const GgufFile& file, const std::string& path) {
  const auto found = file.metadata.find("general.architecture");
  const auto* architecture =
      found == file.metadata.end() ? nullptr : std::get_if<std::string>(&found->second);
  if (architecture == nullptr) throw bad_data("GGUF file '{}' lacks the key 'general.architecture'", path);
  if (*architecture != "llama" && *architecture != "qwen2" && *architecture != "qwen3")
    throw bad_data("GGUF file '{}': architecture '{}' cannot be run; known are llama, qwen2 and qwen3", path,
                   *architecture);
  const GgufKeys keys(file, path, *architecture);
  DecoderConfig config;
  config.model_type = *architecture;
  config.width = keys.count("embedding_length");
  config.inner = keys.count("feed_forward_length");
  config.blocks = keys.count("block_count", {}, 10'000);
  config.heads = keys.count("attention.head_count");
  config.kv_heads = keys.count("attention.head_count_kv", config.heads);
  config.positions = keys.count("context_length", {}, int64_t{1} << 32);
  config.norm_epsilon = keys.number("attention.layer_norm_rms_epsilon");
  if (config.heads % config.kv_heads != 0)
    throw bad_data("GGUF file '{}': {} attention heads are not a multiple of {} key/value heads", path,
                   config.heads, config.kv_heads);
  config.head_width = keys.count("attention.key_length", std::max<int64_t>(1, config.width / config.heads));
  if (config.head_width % 2 != 0 ||
      keys.count("rope.dimension_count", config.head_width) != config.head_width)
    throw bad_data("GGUF file '{}': heads of width {} are not rotated as a whole, which is not known", path,
                   config.head_width);
  const GgufTensor* embedding = tensor_named(file, "token_embd.weight");
  if (embedding == nullptr || embedding->shape.empty())
    throw bad_data("GGUF file '{}' lacks the tensor 'token_embd.weight'", path);
  config.vocabulary = embedding->shape[0];
  config.tied_head = tensor_named(file, "output.weight") == nullptr;
  config.qkv_bias = *architecture == "qwen2" || tensor_named(file, "blk.0.attn_q.bias") != nullptr;
  config.output_bias = tensor_named(file, "blk.0.attn_output.bias") != nullptr;
  config.mlp_bias = tensor_named(file, "blk.0.ffn_gate.bias") != nullptr;
  config.head_norm = *architecture == "qwen3";
  config.rope.theta = keys.number("rope.freq_base", 10000);
  config.rope.original_positions =
      keys.count("rope.scaling.original_context_length", config.positions, int64_t{1} << 32);
  const std::string scaling = keys.find<std::string>("rope.scaling.type").value_or("none");
  if (scaling == "linear" || scaling == "yarn") {
    config.rope.scaling = scaling == "linear" ? RopeScaling::kLinear : RopeScaling::kYarn;
    config.rope.factor = keys.number("rope.scaling.factor");
    if (scaling == "yarn" && config.rope.factor > 1)
      config.rope.attention_factor = 0.1 * std::log(config.rope.factor) + 1;
  } else if (scaling != "none") {
    throw bad_data("GGUF file '{}': rope scaling '{}' is not known; none, linear and yarn are", path,
                   scaling);
  }
  if (keys.find<int64_t>("attention.sliding_window").value_or(0) > 0)
    throw bad_data("GGUF file '{}': sliding windows are not known for {}", path, *architecture);
  config.rotates.assign(static_cast<size_t>(config.blocks), true);
  config.windows.assign(static_cast<size_t>(config.blocks), 0);
  return config;
}

// A tensor whose type is one of PyTorch's, in its map; others are dequantized, rows in parallel.
at::Tensor values_of(const GgufTensor& tensor) {
  auto* data = const_cast<std::byte*>(tensor.bytes.data());
  switch (tensor.type) {
    case GgufType::kF32: return at::from_blob(data, tensor.shape, at::kFloat);
    case GgufType::kF16: return at::from_blob(data, tensor.shape, at::kHalf);
    case GgufType::kBF16: return at::from_blob(data, tensor.shape, at::kBFloat16);
    default: break;
  }
  at::Tensor values = at::empty(tensor.shape, at::kFloat);
  const GgufBlock block = block_of(tensor.type);
  const int64_t blocks = values.numel() / block.values;
  float* to = values.data_ptr<float>();
  constexpr int64_t kGrain = 4096;
  at::parallel_for(0, blocks, kGrain, [&](int64_t begin, int64_t end) {
    const auto at = static_cast<uint64_t>(begin) * block.bytes;
    dequantize_gguf(tensor.type, tensor.bytes.subspan(at, static_cast<uint64_t>(end - begin) * block.bytes),
                    to + begin * block.values);
  });
  return values;
}

class GgufSource : public WeightSource {
 public:
  GgufSource(SharedFile file, const GgufFile& content, const DecoderConfig& config)
      : file_(std::move(file)), config_(config) {
    for (const GgufTensor& tensor : content.tensors) {
      if (tensor.name == "rope_freqs.weight") continue;  // part of the configuration
      const std::string name = name_in_transformers(tensor.name);
      tensors_[name] = tensor;
      shapes_[name] = tensor.shape;
    }
  }

  // llama.cpp orders the rows of q and k of a Llama so that neighbours rotate together.
  at::Tensor read(const std::string& name) const override {
    const at::Tensor values = values_of(tensors_.at(name));
    const bool query = name.find(".q_proj.") != std::string::npos,
               key = name.find(".k_proj.") != std::string::npos;
    if (config_.model_type != "llama" || (!query && !key)) return values;
    const int64_t heads = query ? config_.heads : config_.kv_heads;
    return values.reshape({heads, config_.head_width / 2, 2, -1}).transpose(1, 2).reshape(values.sizes());
  }

  void give_back(const std::string& prefix) const override {
    for (auto it = tensors_.lower_bound(prefix); it != tensors_.end() && it->first.starts_with(prefix); ++it)
      file_->drop(it->second.bytes);
  }

 private:
  SharedFile file_;
  const DecoderConfig config_;
  std::map<std::string, GgufTensor> tensors_;
};

}  // namespace

OpenedModel open_gguf(const std::string& path) {
  const auto file = std::make_shared<const MappedFile>(path);
  const GgufFile content = read_gguf(file->bytes(), path);
  DecoderConfig config = config_of(content, path);
  if (const GgufTensor* divisors = tensor_named(content, "rope_freqs.weight")) {
    const at::Tensor values = values_of(*divisors).to(at::kDouble).flatten().contiguous();
    if (values.numel() != config.head_width / 2)
      throw bad_data("GGUF file '{}': 'rope_freqs.weight' has {} values, and heads of width {} need {}", path,
                     values.numel(), config.head_width, config.head_width / 2);
    config.rope.divisors = {values.const_data_ptr<double>(),
                            values.const_data_ptr<double>() + values.numel()};
  }
  auto weights = std::make_unique<GgufSource>(file, content, config);
  return {std::move(config), std::move(weights)};
}

}  // namespace mcompress
