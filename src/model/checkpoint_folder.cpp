#include <filesystem>

#include <nlohmann/json.hpp>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/checkpoint.h"
#include "stored_type.h"

namespace mcompress {

namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";

nlohmann::ordered_json read_ordered(const std::string& path) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  parse_json(text, fmt::format("'{}'", path));
  return nlohmann::ordered_json::parse(text);
}

void write_text(const std::string& path, const std::string& text) {
  OutputFile file(path, true);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

nlohmann::ordered_json quantization_config(const CheckpointFiles& checkpoint, StoredType type,
                                           std::vector<std::string> kept) {
  // A head that is tied to the embedding has no weight of its own, and readers must not expect a scale.
  const bool has_head = std::any_of(checkpoint.arrays.begin(), checkpoint.arrays.end(),
                                    [](const Array& a) { return a.name.ends_with("lm_head.weight"); });
  if (!has_head) kept.emplace_back("lm_head");
  const auto scheme = [](const char* strategy, bool dynamic) {
    return nlohmann::ordered_json{{"num_bits", 8},
                                  {"type", "int"},
                                  {"symmetric", true},
                                  {"strategy", strategy},
                                  {"group_size", nullptr},
                                  {"dynamic", dynamic},
                                  {"actorder", nullptr},
                                  {"block_structure", nullptr},
                                  {"observer", dynamic ? nlohmann::ordered_json(nullptr) : "minmax"},
                                  {"observer_kwargs", nlohmann::ordered_json::object()}};
  };
  return {{"quant_method", "compressed-tensors"},
          {"format", "int-quantized"},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},
          {"kv_cache_scheme", nullptr},
          {"ignore", kept},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"output_activations", nullptr},
              {"weights", scheme(type == StoredType::kInt8Tensor ? "tensor" : "channel", false)},
              {"input_activations", scheme("token", true)}}}}}};
}

// The index of the output: every tensor with its shard, and the bytes of them all.
void write_index(const CheckpointFiles& checkpoint, const std::vector<bool>& chosen, StoredType type,
                 OutputFolder& folder) {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  uint64_t total = 0;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const std::string shard =
        std::filesystem::path(checkpoint.files[checkpoint.file_of[i]]->path()).filename().string();
    map[array.name] = shard;
    total += count_elements(array.shape).value() * size_of(chosen[i] ? stored_dtype(type) : array.dtype);
    if (!chosen[i] || !has_scale(type)) continue;
    map[scale_name(array)] = shard;
    total += (type == StoredType::kInt8Rows ? static_cast<uint64_t>(array.shape[0]) : 1) * sizeof(float);
  }
  write_text(
      folder.path_of(kIndexName),
      nlohmann::ordered_json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n");
}

}  // namespace

void write_compressed_folder(const CheckpointFiles& checkpoint, const std::string& source,
                             const std::vector<bool>& chosen, StoredType type, const QuantizeRows& quantize,
                             const std::vector<std::string>& kept, OutputFolder& folder) {
  for (size_t part = 0; part < checkpoint.files.size(); ++part) {
    const std::string name = std::filesystem::path(checkpoint.files[part]->path()).filename().string();
    OutputFile file(folder.path_of(name), true);
    write_compressed(checkpoint, part, chosen, type, quantize, file);
    file.commit();
  }
  for (const auto& entry : std::filesystem::directory_iterator(source)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name.ends_with(".safetensors") || name == kIndexName) continue;
    if (name == "config.json" && has_scale(type)) {
      nlohmann::ordered_json config = read_ordered(entry.path().string());
      config["quantization_config"] = quantization_config(checkpoint, type, kept);
      write_text(folder.path_of(name), config.dump(2) + "\n");
    } else {
      OutputFile file(folder.path_of(name), true);
      file.write(MappedFile(entry.path().string()).bytes());
      file.commit();
    }
  }
  if (std::filesystem::exists(source + "/" + kIndexName)) write_index(checkpoint, chosen, type, folder);
}

}  // namespace mcompress
