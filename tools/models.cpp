#include "models.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/sha256.h"
#include "mcompress/formats/gguf.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/packed_folder.h"
#include "mcompress/model/program.h"

namespace mcompress::cli {

namespace fs = std::filesystem;

torch::jit::Module load_dense(const std::string& path, bool trust_code) {
  const auto program = load_program(path, trust_code);
  make_dense(program);
  return program;
}

WeightCount count_program(const torch::jit::Module& program) {
  WeightCount count;
  std::set<const void*> seen;
  const auto add = [&](const at::Tensor& tensor) {
    if (!seen.insert(tensor.data_ptr()).second) return;
    count.parameters += tensor.numel();
    *count.nonzeros += count_elements_of(tensor).nonzeros;
  };
  for (const at::Tensor& parameter : program.parameters()) add(parameter);
  // Replaced layers hold their weight as a buffer.
  for (const auto& buffer : program.named_buffers()) {
    const at::ScalarType type = buffer.value.scalar_type();
    if (type == at::kChar || type == at::kHalf || type == at::kBFloat16) add(buffer.value);
  }
  return count;
}

namespace {

// The layers of whatever packed form there is; none where they do not fit one, which whoever computes with
// them tells.
std::optional<PackedReader> packed_layers(const CheckpointFiles& checkpoint) {
  try {
    const auto form = guess_form(checkpoint);
    return form ? std::optional<PackedReader>(std::in_place, checkpoint, *form) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

WeightCount count_checkpoint(const CheckpointFiles& checkpoint) {
  WeightCount count;
  std::set<std::string> scales;  // of quantized weights
  for (const Array& array : checkpoint.arrays) {
    if (size_of(array.dtype) == 1) scales.insert(scale_name(array.name));
  }
  const auto packed = packed_layers(checkpoint);
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const bool weights = is_floating(array.dtype) || array.dtype == DType::kI8;
    if (!weights || scales.contains(array.name) || (packed && packed->is_part(array.name))) continue;
    const ElementCount pieces = count_elements_of(array, *checkpoint.files[checkpoint.file_of[i]]);
    count.parameters += pieces.elements;
    *count.nonzeros += pieces.nonzeros;
  }
  if (!packed) return count;
  count.nonzeros.reset();
  for (const auto& [layer, sizes] : packed->layers()) count.parameters += sizes.first * sizes.second;
  return count;
}

WeightCount count_gguf(const std::string& path) {
  const MappedFile file(path);
  WeightCount count;
  for (const GgufTensor& tensor : read_gguf(file.bytes(), path).tensors) {
    if (tensor.name.starts_with("rope_")) continue;  // part of the configuration
    const GgufBlock block = block_of(tensor.type);
    const uint64_t piece = 4096 * block.bytes;
    std::vector<float> values(static_cast<size_t>(4096 * block.values));
    for (uint64_t at = 0; at < tensor.bytes.size(); at += piece) {
      const Bytes part = tensor.bytes.subspan(at, std::min<uint64_t>(piece, tensor.bytes.size() - at));
      dequantize_gguf(tensor.type, part, values.data());
      const auto size = static_cast<int64_t>(part.size() / block.bytes) * block.values;
      count.parameters += size;
      *count.nonzeros += size - std::count(values.begin(), values.begin() + size, 0.0F);
    }
  }
  return count;
}

WeightCount count_model(const std::string& path, ModelFormat format, bool trust_code) {
  if (format == ModelFormat::kTorchScript) return count_program(load_program(path, trust_code));
  if (format == ModelFormat::kGguf) return count_gguf(path);
  return count_checkpoint(read_checkpoint(path, format));
}

uint64_t bytes_on_disk(const std::string& path) {
  if (!fs::is_directory(path)) return fs::file_size(path);
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

BackgroundHash::BackgroundHash(const std::string& path) {
  std::packaged_task<std::string(const std::stop_token&)> task(
      [path](const std::stop_token& stop) { return sha256_of_path(path, stop); });
  result_ = task.get_future().share();
  worker_ = std::jthread(std::move(task));
}

Artifact describe_artifact(const std::string& path, const std::string& format, const WeightCount& count) {
  BackgroundHash hash(path);
  return describe_artifact(path, format, count, hash);
}

Artifact describe_artifact(const std::string& path, const std::string& format, const WeightCount& count,
                           const BackgroundHash& hash) {
  return {path, format, hash.get(), bytes_on_disk(path), count.parameters, count.nonzeros};
}

std::vector<Metrics> measure_programs(const std::vector<torch::jit::Module>& programs, const Dataset& data,
                                      int64_t batch_size) {
  constexpr double kLatencySeconds = 0.5;
  std::vector<Forward> forwards;
  std::vector<Metrics> metrics(programs.size());
  for (size_t i = 0; i < programs.size(); ++i) {
    forwards.push_back(program_forward(programs[i]));
    metrics[i].accuracy = measure_accuracy(forwards[i], data, batch_size);
  }
  const at::Tensor batch = data.batch(0, std::min(batch_size, data.size()));
  const std::vector<Latency> latencies = measure_latency(forwards, batch, kLatencySeconds);
  for (size_t i = 0; i < programs.size(); ++i) metrics[i].latency = latencies[i];
  return metrics;
}

}  // namespace mcompress::cli
