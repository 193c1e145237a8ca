#include <filesystem>
#include <map>

#include <nlohmann/json.hpp>

#include "folder_files.h"
#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/model/checkpoint.h"
#include "stored_type.h"

namespace mcompress {

namespace fs = std::filesystem;

namespace {

nlohmann::ordered_json quantization_config(const CheckpointFiles& checkpoint, const StoragePlan& plan) {
  std::vector<std::string> kept = plan.kept_linear;
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
  const auto group = [&](const std::vector<std::string>& targets, const nlohmann::ordered_json& inputs) {
    return nlohmann::ordered_json{
        {"targets", targets},
        {"output_activations", nullptr},
        {"weights", scheme(plan.type == StoredType::kInt8Tensor ? "tensor" : "channel", false)},
        {"input_activations", inputs}};
  };
  nlohmann::ordered_json groups = {{"group_0", group({"Linear"}, scheme("token", true))}};
  if (!plan.embeddings.empty()) {
    groups["group_1"] = group(plan.embeddings, nullptr);
    groups["group_1"]["format"] = "int-quantized";  // else readers take it for packed, as it rounds no inputs
  }
  return {{"quant_method", "compressed-tensors"},
          {"format", "int-quantized"},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},
          {"kv_cache_scheme", nullptr},
          {"ignore", kept},
          {"config_groups", groups}};
}

// The index of the output: every tensor with its shard, and the bytes of them all.
std::string index_text(const CheckpointFiles& checkpoint, const StoragePlan& plan) {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  uint64_t total = 0;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const std::string shard = fs::path(checkpoint.files[checkpoint.file_of[i]]->path()).filename().string();
    const bool chosen = plan.chosen[i];
    map[array.name] = shard;
    total += count_elements(array.shape).value() * size_of(chosen ? stored_dtype(plan.type) : array.dtype);
    if (!chosen || !has_scale(plan.type)) continue;
    map[scale_name(array.name)] = shard;
    total += (plan.type == StoredType::kInt8Rows ? static_cast<uint64_t>(array.shape[0]) : 1) * sizeof(float);
  }
  return nlohmann::ordered_json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n";
}

// The files of the output that are made anew, beside the shards: name -> content.
std::map<std::string, std::string> new_texts(const CheckpointFiles& checkpoint, const std::string& source,
                                             const StoragePlan& plan) {
  std::map<std::string, std::string> texts;
  if (fs::exists(source + "/" + kIndexName)) texts[kIndexName] = index_text(checkpoint, plan);
  if (has_scale(plan.type)) {
    nlohmann::ordered_json config = read_ordered(source + "/config.json");
    config["quantization_config"] = quantization_config(checkpoint, plan);
    texts["config.json"] = config.dump(2) + "\n";
  }
  return texts;
}

}  // namespace

uint64_t predict_folder_bytes(const CheckpointFiles& checkpoint, const std::string& source,
                              const StoragePlan& plan) {
  uint64_t bytes = predict_compressed_bytes(checkpoint, plan);
  const auto texts = new_texts(checkpoint, source, plan);
  for (const auto& [name, text] : texts) bytes += text.size();
  for (const fs::path& file : files_to_copy(source, texts)) bytes += fs::file_size(file);
  return bytes;
}

void write_compressed_folder(const CheckpointFiles& checkpoint, const std::string& source,
                             const StoragePlan& plan, const QuantizeRows& quantize, OutputFolder& folder) {
  for (size_t part = 0; part < checkpoint.files.size(); ++part) {
    OutputFile file(folder.path_of(fs::path(checkpoint.files[part]->path()).filename().string()), true);
    write_compressed(checkpoint, part, plan, quantize, file);
    file.commit();
  }
  const auto texts = new_texts(checkpoint, source, plan);
  for (const auto& [name, text] : texts) write_text(folder.path_of(name), text);
  copy_files(files_to_copy(source, texts), folder);
}

void write_edited_folder(const CheckpointFiles& checkpoint, const std::string& source,
                         const std::map<size_t, EditRows>& edits, OutputFolder& folder) {
  for (size_t part = 0; part < checkpoint.files.size(); ++part) {
    OutputFile file(folder.path_of(fs::path(checkpoint.files[part]->path()).filename().string()), true);
    write_edited(checkpoint, part, edits, file);
    file.commit();
  }
  copy_files(files_to_copy(source, {}), folder);
}

}  // namespace mcompress
