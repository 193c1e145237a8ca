#include "mcompress/model/packed_folder.h"

#include <algorithm>
#include <set>

#include <ATen/ATen.h>

#include "folder_files.h"
#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/pieces.h"
#include "packed_config.h"
#include "packed_words.h"
#include "shards.h"

namespace mcompress {

namespace {

using nlohmann::ordered_json;

// What an array that stays becomes.
DType kept_type(const Array& array, const PackedFolder& options) {
  return options.form && is_floating(array.dtype) ? DType::kF16 : array.dtype;
}

// Whether its plain weight is stored [inputs, outputs].
bool is_transposed(const std::string& layer, const PackedFolder& options) {
  return options.transposed && layer != options.head_name && !is_embedding(layer + ".weight");
}

// What is written of a layer.
std::vector<PackedPart> parts_of(const PackedLayer& layer, const PackedFolder& options) {
  if (options.form) return packed_parts(*options.form, layer);
  return {{".weight", DType::kF32,
           is_transposed(layer.name, options) ? std::vector<int64_t>{layer.inputs, layer.outputs}
                                              : std::vector<int64_t>{layer.outputs, layer.inputs}}};
}

PackedTensors tensors_of(const std::string& layer, const IntGroup& weight, const PackedFolder& options) {
  const bool embedding =
      std::any_of(options.layers.begin(), options.layers.end(),
                  [&](const PackedLayer& each) { return each.embedding && each.name == layer; });
  if (options.form && embedding) return pack_layer(PackedForm::kPlainCodes, true, weight);
  if (options.form) return pack_layer(*options.form, options.symmetric, weight);
  const at::Tensor values = dequantize_rows(weight, 0, weight.codes.size(0));
  if (!values.isfinite().all().item<bool>())
    throw bad_data("layer '{}': its scales give values beyond float32; repair the model", layer);
  return {{".weight", is_transposed(layer, options) ? values.t().contiguous() : values}};
}

// What becomes of the arrays of the source that are none to keep: the first one of a layer makes way for its
// packed tensors, others of a layer that is packed already are gone.
std::map<std::string, const PackedLayer*> replaced_arrays(const PackedFolder& options) {
  std::map<std::string, const PackedLayer*> layers;
  for (const PackedLayer& layer : options.layers) {
    if (!options.source_form || layer.embedding) {
      for (const std::string& suffix : packed_suffixes(PackedForm::kPlainCodes))
        layers[layer.name + suffix] = nullptr;
      layers[layer.name + ".weight"] = &layer;
      continue;
    }
    for (const std::string& suffix : packed_suffixes(*options.source_form))
      layers[layer.name + suffix] = nullptr;
    layers[layer.name + packed_suffixes(*options.source_form)[0]] = &layer;
  }
  return layers;
}

// Tensors in the order of the source; a layer's stay together.
std::vector<Shard> shards_of(const CheckpointFiles& checkpoint, const PackedFolder& options) {
  const auto replaced = replaced_arrays(options);
  std::vector<std::vector<SafetensorsWriter::Entry>> together;
  for (const Array& array : checkpoint.arrays) {
    std::vector<SafetensorsWriter::Entry> entries;
    if (const auto found = replaced.find(array.name); found != replaced.end()) {
      if (found->second == nullptr) continue;
      for (const PackedPart& part : parts_of(*found->second, options))
        entries.push_back({found->second->name + part.suffix, part.dtype, part.shape});
    } else {
      entries.push_back({array.name, kept_type(array, options), array.shape});
    }
    together.push_back(std::move(entries));
  }
  return plan_shards(std::move(together), options.shard_bytes);
}

// The files of the output that are made anew, beside the shards: name -> content. An empty one is left out.
std::map<std::string, std::string> new_texts(const std::vector<Shard>& shards, const std::string& source,
                                             const PackedFolder& options) {
  std::map<std::string, std::string> texts;
  texts[kIndexName] = index_text(shards);
  texts["quantize_config.json"] = "";
  ordered_json config = read_ordered(source + "/config.json");
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = options.form ? "float16" : "float32";
  config.erase("quantization_config");
  if (options.form) {
    config["quantization_config"] = quantization_config(options);
    if (is_gptq(*options.form)) texts["quantize_config.json"] = config["quantization_config"].dump(2) + "\n";
  }
  texts["config.json"] = config.dump(2) + "\n";
  return texts;
}

std::map<std::string, std::string> metadata_of(const CheckpointFiles& checkpoint) {
  std::map<std::string, std::string> metadata = checkpoint.metadata;
  metadata["format"] = "pt";  // older versions of transformers ask for it
  return metadata;
}

// In pieces of rows, so that a large embedding is never held twice.
void write_kept(const Array& array, const MappedFile& map, const PackedFolder& options, ShardWriter& out) {
  const int64_t rows = array.shape.empty() ? 1 : array.shape[0];
  const uint64_t elements = count_elements(array.shape).value();
  if (elements == 0) return;
  const uint64_t row_bytes = elements / static_cast<uint64_t>(rows) * size_of(kept_type(array, options));
  constexpr uint64_t kPieceBytes = uint64_t{1} << 20;
  const int64_t piece = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / row_bytes));
  for (int64_t begin = 0; begin < rows; begin += piece) {
    check_interrupt();
    const int64_t end = std::min(begin + piece, rows);
    const auto changed = options.changed.find(array.name);
    const at::Tensor values =
        changed == options.changed.end() ? rows_of(array, begin, end) : changed->second.slice(0, begin, end);
    const at::Tensor stored = options.form && values.is_floating_point() ? values.to(at::kHalf) : values;
    if (options.form && stored.is_floating_point() && !stored.isfinite().all().item<bool>())
      throw bad_data(
          "tensor '{}' has values beyond float16, in which readers of packed weights compute; use --format "
          "dequantized",
          array.name);
    out.write(array.name, static_cast<uint64_t>(begin) * row_bytes, stored.contiguous());
    if (array.strides.empty()) map.drop(array.bytes);
  }
}

}  // namespace

uint64_t predict_packed_folder_bytes(const CheckpointFiles& checkpoint, const std::string& source,
                                     const PackedFolder& options) {
  const std::vector<Shard> shards = shards_of(checkpoint, options);
  uint64_t bytes = 0;
  for (const Shard& shard : shards)
    bytes += SafetensorsWriter(shard.entries, metadata_of(checkpoint)).file_bytes();
  const auto texts = new_texts(shards, source, options);
  for (const auto& [name, text] : texts) bytes += text.size();
  for (const auto& file : files_to_copy(source, texts)) bytes += std::filesystem::file_size(file);
  return bytes;
}

void write_packed_folder(const CheckpointFiles& checkpoint, const std::string& source,
                         const PackedFolder& options, const std::function<void(const TakeLayer& take)>& give,
                         OutputFolder& folder) {
  const std::vector<Shard> shards = shards_of(checkpoint, options);
  const auto replaced = replaced_arrays(options);
  ShardWriter out(shards, metadata_of(checkpoint), folder);
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    if (!replaced.contains(array.name))
      write_kept(array, *checkpoint.files[checkpoint.file_of[i]], options, out);
  }
  give([&](const std::string& name, const IntGroup& weight) {
    check_interrupt();
    for (const auto& [suffix, values] : tensors_of(name, weight, options))
      out.write(name + suffix, 0, values);
  });
  out.commit();
  const auto texts = new_texts(shards, source, options);
  for (const auto& [name, text] : texts) {
    if (!text.empty()) write_text(folder.path_of(name), text);
  }
  copy_files(files_to_copy(source, texts), folder);
}

}  // namespace mcompress
