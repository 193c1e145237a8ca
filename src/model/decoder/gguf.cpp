#include "mcompress/formats/gguf.h"

#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"
#include "source.h"

namespace mcompress {

namespace {

bool is_rotation(const std::string& name) {
  return name == kFrequencies || name == kShortFactors || name == kLongFactors;
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
      if (is_rotation(tensor.name)) continue;  // part of the configuration
      tensors_[tensor.name] = tensor;
      shapes_[tensor.name] = tensor.shape;
    }
  }

  at::Tensor read(const std::string& name) const override {
    const at::Tensor values = values_of(tensors_.at(name));
    const bool query = name.find(".attn_q.") != std::string::npos,
               key = name.find(".attn_k.") != std::string::npos;
    if (!rotates_neighbours(config_.model_type) || (!query && !key)) return values;
    const int64_t heads = query ? config_.heads : config_.kv_heads;
    return values.reshape({heads, config_.head_width / 2, 2, -1}).transpose(1, 2).reshape(values.sizes());
  }

  bool rounds_inputs(const std::string&) const override { return false; }

  void give_back(const std::string& prefix) const override {
    for (auto it = tensors_.lower_bound(prefix); it != tensors_.end() && it->first.starts_with(prefix); ++it)
      file_->drop(it->second.bytes);
  }

 private:
  SharedFile file_;
  const DecoderConfig config_;
  std::map<std::string, GgufTensor> tensors_;
};

// The values of a tensor that says how positions are rotated, one of each frequency.
std::vector<double> divisors_of(const GgufFile& file, const char* name, const DecoderConfig& config,
                                const std::string& path) {
  const GgufTensor* tensor = find_tensor(file, name);
  if (tensor == nullptr) throw bad_data("GGUF file '{}' lacks the tensor '{}'", path, name);
  const at::Tensor values = values_of(*tensor).to(at::kDouble).flatten().contiguous();
  if (values.numel() != config.rotated_width / 2)
    throw bad_data("GGUF file '{}': '{}' has {} values, and heads rotated by {} need {}", path, name,
                   values.numel(), config.rotated_width, config.rotated_width / 2);
  if (!(values > 0).logical_and(values.isfinite()).all().item<bool>())
    throw bad_data("GGUF file '{}': '{}' has values that are not above 0", path, name);
  const double* data = values.const_data_ptr<double>();
  return {data, data + values.numel()};
}

}  // namespace

OpenedModel open_gguf(const std::string& path) {
  const auto file = std::make_shared<const MappedFile>(path);
  const GgufFile content = read_gguf(file->bytes(), path);
  DecoderConfig config = gguf_decoder_config(content, path);
  if (config.rope.scaling == RopeScaling::kLongrope) {
    config.rope.divisors = divisors_of(content, kShortFactors, config, path);
    config.rope.long_divisors = divisors_of(content, kLongFactors, config, path);
  } else if (find_tensor(content, kFrequencies) != nullptr) {
    config.rope.divisors = divisors_of(content, kFrequencies, config, path);
  }
  auto weights = std::make_unique<GgufSource>(file, content, config);
  return {std::move(config), std::move(weights)};
}

}  // namespace mcompress
