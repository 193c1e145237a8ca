#include "mcompress/model/gptq_folder.h"

#include <algorithm>
#include <memory>
#include <set>

#include <ATen/ATen.h>

#include "folder_files.h"
#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/model/checkpoint.h"

namespace mcompress {

namespace {

using nlohmann::ordered_json;

// One file of tensors.
struct Shard {
  std::string name;
  std::vector<SafetensorsWriter::Entry> entries;
  uint64_t bytes = 0;
};

uint64_t bytes_of(const SafetensorsWriter::Entry& entry) {
  return count_elements(entry.shape).value() * size_of(entry.dtype);
}

// What an array that stays becomes.
DType kept_type(const Array& array) { return is_floating(array.dtype) ? DType::kF16 : array.dtype; }

std::map<std::string, const GptqLayer*> layers_by_weight(const GptqFolder& options) {
  std::map<std::string, const GptqLayer*> layers;
  for (const GptqLayer& layer : options.layers) layers[layer.name + ".weight"] = &layer;
  return layers;
}

// Tensors in the order of the source; a layer's stay together.
std::vector<Shard> plan_shards(const CheckpointFiles& checkpoint, const GptqFolder& options) {
  const auto layers = layers_by_weight(options);
  std::vector<Shard> shards(1);
  for (const Array& array : checkpoint.arrays) {
    std::vector<SafetensorsWriter::Entry> entries;
    if (const auto layer = layers.find(array.name); layer != layers.end()) {
      const GptqLayer& of = *layer->second;
      const auto shapes = gptq_shapes(of.outputs, of.inputs, of.groups, of.bits);
      for (size_t i = 0; i < shapes.size(); ++i)
        entries.push_back({of.name + kGptqParts[i], shapes[i].dtype, shapes[i].shape});
    } else {
      entries.push_back({array.name, kept_type(array), array.shape});
    }
    uint64_t bytes = 0;
    for (const auto& entry : entries) bytes += bytes_of(entry);
    if (shards.back().bytes > 0 && shards.back().bytes + bytes > options.shard_bytes) shards.emplace_back();
    shards.back().bytes += bytes;
    for (auto& entry : entries) shards.back().entries.push_back(std::move(entry));
  }
  for (size_t i = 0; i < shards.size(); ++i)
    shards[i].name = shards.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  return shards;
}

// A regular expression for exactly this name, as GPTQModel matches them.
std::string expression_of(const std::string& name) {
  std::string result = "^";
  for (const char c : name) {
    if (c == '.') result += '\\';
    result += c;
  }
  return result + "$";
}

// Overrides by layer: other bits or groups, and layers that stay as they are.
ordered_json overrides(const GptqFolder& options) {
  ordered_json json = ordered_json::object();
  for (const GptqLayer& layer : options.layers) {
    if (layer.bits == options.bits && layer.group_size == options.group_size) continue;
    json["+:" + expression_of(layer.name)] = {{"bits", layer.bits}, {"group_size", layer.group_size}};
  }
  for (const std::string& name : options.kept) json["-:" + expression_of(name)] = ordered_json::object();
  return json;
}

ordered_json quantization_config(const GptqFolder& options) {
  const char* format = options.zeros == GptqZeros::kLessOne ? "gptq" : "gptq_v2";
  ordered_json json = {{"quant_method", "gptq"},
                       {"bits", options.bits},
                       {"group_size", options.group_size},
                       // Readers take it for a g_idx that is not in order.
                       {"desc_act", options.act_order && !options.static_groups},
                       {"sym", options.symmetric},
                       {"lm_head", options.head},
                       {"damp_percent", options.damping},
                       {"true_sequential", options.true_sequential},
                       {"static_groups", options.static_groups},
                       {"checkpoint_format", format},
                       {"format", format},
                       {"method", "gptq"},
                       {"pack_dtype", "int32"},
                       {"meta", {{"quantizer", ordered_json::array({"mcompress:" + options.version})}}}};
  const ordered_json dynamic = overrides(options);
  if (!dynamic.empty()) json["dynamic"] = dynamic;
  if (!options.parts.empty()) json["modules_in_block_to_quantize"] = options.parts;
  return json;
}

std::string index_text(const std::vector<Shard>& shards) {
  ordered_json map = ordered_json::object();
  uint64_t total = 0;
  for (const Shard& shard : shards) {
    for (const auto& entry : shard.entries) {
      map[entry.name] = shard.name;
      total += bytes_of(entry);
    }
  }
  return ordered_json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n";
}

// The files of the output that are made anew, beside the shards: name -> content. An empty one is left out.
std::map<std::string, std::string> new_texts(const std::vector<Shard>& shards, const std::string& source,
                                             const GptqFolder& options) {
  std::map<std::string, std::string> texts;
  texts[kIndexName] = shards.size() > 1 ? index_text(shards) : "";
  const ordered_json quantization = quantization_config(options);
  texts["quantize_config.json"] = quantization.dump(2) + "\n";
  ordered_json config = read_ordered(source + "/config.json");
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = "float16";
  config["quantization_config"] = quantization;
  texts["config.json"] = config.dump(2) + "\n";
  return texts;
}

std::map<std::string, std::string> metadata_of(const CheckpointFiles& checkpoint) {
  std::map<std::string, std::string> metadata = checkpoint.metadata;
  metadata["format"] = "pt";  // older versions of transformers ask for it
  return metadata;
}

Bytes span_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

// The files of the output while they are written.
class Writing {
 public:
  Writing(const std::vector<Shard>& shards, const std::map<std::string, std::string>& metadata,
          const OutputFolder& folder) {
    for (size_t i = 0; i < shards.size(); ++i) {
      files_.push_back(std::make_unique<OutputFile>(folder.path_of(shards[i].name), true));
      writers_.emplace_back(shards[i].entries, metadata);
      writers_.back().write_header(*files_.back());
      for (const auto& entry : shards[i].entries) shard_of_[entry.name] = i;
    }
  }

  void write(const std::string& name, uint64_t offset, const at::Tensor& values) {
    const size_t shard = shard_of_.at(name);
    writers_[shard].write(*files_[shard], name, offset, span_of(values));
  }

  void commit() {
    for (const auto& file : files_) file->commit();
  }

 private:
  std::vector<std::unique_ptr<OutputFile>> files_;
  std::vector<SafetensorsWriter> writers_;
  std::map<std::string, size_t> shard_of_;
};

// In pieces of rows, so that a large embedding is never held twice.
void write_kept(const Array& array, const MappedFile& map, Writing& out) {
  const int64_t rows = array.shape.empty() ? 1 : array.shape[0];
  const uint64_t elements = count_elements(array.shape).value();
  if (elements == 0) return;
  const uint64_t row_bytes = elements / static_cast<uint64_t>(rows) * size_of(kept_type(array));
  constexpr uint64_t kPieceBytes = uint64_t{1} << 20;
  const int64_t piece = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / row_bytes));
  for (int64_t begin = 0; begin < rows; begin += piece) {
    check_interrupt();
    const int64_t end = std::min(begin + piece, rows);
    const at::Tensor values = rows_of(array, begin, end);
    const at::Tensor stored = values.is_floating_point() ? values.to(at::kHalf) : values;
    if (stored.is_floating_point() && !stored.isfinite().all().item<bool>())
      throw bad_data(
          "tensor '{}' has values beyond float16, in which GPTQ's readers compute; use --format "
          "dequantized",
          array.name);
    out.write(array.name, static_cast<uint64_t>(begin) * row_bytes, stored.contiguous());
    if (array.strides.empty()) map.drop(array.bytes);
  }
}

}  // namespace

uint64_t gptq_bytes(const GptqLayer& layer) {
  uint64_t bytes = 0;
  for (const GptqShape& part : gptq_shapes(layer.outputs, layer.inputs, layer.groups, layer.bits))
    bytes += count_elements(part.shape).value() * size_of(part.dtype);
  return bytes;
}

uint64_t predict_gptq_folder_bytes(const CheckpointFiles& checkpoint, const std::string& source,
                                   const GptqFolder& options) {
  const std::vector<Shard> shards = plan_shards(checkpoint, options);
  uint64_t bytes = 0;
  for (const Shard& shard : shards)
    bytes += SafetensorsWriter(shard.entries, metadata_of(checkpoint)).file_bytes();
  const auto texts = new_texts(shards, source, options);
  for (const auto& [name, text] : texts) bytes += text.size();
  for (const auto& file : files_to_copy(source, texts)) bytes += std::filesystem::file_size(file);
  return bytes;
}

void write_gptq_folder(const CheckpointFiles& checkpoint, const std::string& source,
                       const GptqFolder& options, const std::function<void(const TakeLayer& take)>& give,
                       OutputFolder& folder) {
  const std::vector<Shard> shards = plan_shards(checkpoint, options);
  const auto layers = layers_by_weight(options);
  Writing out(shards, metadata_of(checkpoint), folder);
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    if (!layers.contains(array.name)) write_kept(array, *checkpoint.files[checkpoint.file_of[i]], out);
  }
  give([&](const std::string& name, const IntGroup& weight) {
    check_interrupt();
    const GptqTensors tensors = pack_gptq(weight, options.zeros);
    const std::array<at::Tensor, 4> parts = {tensors.qweight, tensors.qzeros, tensors.scales, tensors.g_idx};
    for (size_t i = 0; i < parts.size(); ++i) out.write(name + kGptqParts[i], 0, parts[i].contiguous());
  });
  out.commit();
  const auto texts = new_texts(shards, source, options);
  for (const auto& [name, text] : texts) {
    if (!text.empty()) write_text(folder.path_of(name), text);
  }
  copy_files(files_to_copy(source, texts), folder);
}

}  // namespace mcompress
