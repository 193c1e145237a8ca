#include "packed_config.h"

#include <map>

namespace mcompress {

namespace {

using nlohmann::ordered_json;

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
ordered_json overrides(const PackedFolder& folder) {
  ordered_json json = ordered_json::object();
  for (const PackedLayer& layer : folder.layers) {
    if (layer.bits == folder.bits && layer.group_size == folder.group_size) continue;
    json["+:" + expression_of(layer.name)] = {{"bits", layer.bits}, {"group_size", layer.group_size}};
  }
  for (const std::string& name : folder.kept) json["-:" + expression_of(name)] = ordered_json::object();
  return json;
}

ordered_json gptq_config(const PackedFolder& folder) {
  const char* format = *folder.form == PackedForm::kGptq ? "gptq" : "gptq_v2";
  ordered_json json = {{"quant_method", "gptq"},
                       {"bits", folder.bits},
                       {"group_size", folder.group_size},
                       // Readers take it for a g_idx that is not in order.
                       {"desc_act", folder.act_order && !folder.static_groups},
                       {"sym", folder.symmetric},
                       {"lm_head", folder.head},
                       {"damp_percent", folder.damping},
                       {"true_sequential", folder.true_sequential},
                       {"static_groups", folder.static_groups},
                       {"checkpoint_format", format},
                       {"format", format},
                       {"method", "gptq"},
                       {"pack_dtype", "int32"},
                       {"meta", {{"quantizer", ordered_json::array({"mcompress:" + folder.version})}}}};
  const ordered_json dynamic = overrides(folder);
  if (!dynamic.empty()) json["dynamic"] = dynamic;
  if (!folder.parts.empty()) json["modules_in_block_to_quantize"] = folder.parts;
  return json;
}

// A layer is left alone where its name contains one of modules_to_not_convert.
ordered_json awq_config(const PackedFolder& folder) {
  ordered_json kept = folder.kept;
  if (!folder.head) kept.push_back(folder.head_name);
  return {{"quant_method", "awq"},
          {"bits", folder.bits},
          {"group_size", folder.group_size},
          {"zero_point", true},
          {"version", "gemm"},
          {"modules_to_not_convert", kept.empty() ? ordered_json() : kept}};
}

ordered_json scheme_of(int bits, int64_t group_size, bool symmetric) {
  const bool grouped = group_size > 0;
  return {{"num_bits", bits},
          {"type", "int"},
          {"symmetric", symmetric},
          {"strategy", grouped ? "group" : "channel"},
          {"group_size", grouped ? ordered_json(group_size) : ordered_json()},
          {"dynamic", false},
          {"actorder", nullptr},
          {"block_structure", nullptr},
          {"observer", "minmax"},
          {"observer_kwargs", ordered_json::object()}};
}

// Embeddings are named, and linear layers where they have several grids.
ordered_json compressed_tensors_config(const PackedFolder& folder) {
  std::map<std::pair<int, int64_t>, ordered_json> targets;  // by bits and group size
  ordered_json embeddings = ordered_json::array();
  for (const PackedLayer& layer : folder.layers) {
    const int64_t size = layer.group_size >= layer.inputs ? -1 : layer.group_size;
    (layer.embedding ? embeddings : targets[{layer.bits, size}]).push_back(layer.name);
  }
  ordered_json groups = ordered_json::object();
  const auto add = [&](const ordered_json& names, const ordered_json& scheme) -> ordered_json& {
    ordered_json& group = groups["group_" + std::to_string(groups.size())];
    group = {{"targets", names},
             {"weights", scheme},
             {"input_activations", nullptr},
             {"output_activations", nullptr}};
    return group;
  };
  for (const auto& [grid, names] : targets)
    add(targets.size() == 1 ? ordered_json::array({"Linear"}) : names,
        scheme_of(grid.first, grid.second, folder.symmetric));
  if (!embeddings.empty()) add(embeddings, scheme_of(8, -1, true))["format"] = "int-quantized";
  ordered_json ignore = folder.kept;
  if (!folder.head) ignore.push_back(folder.head_name);
  return {{"quant_method", "compressed-tensors"},
          {"format", folder.form == PackedForm::kPlainCodes ? "int-quantized" : "pack-quantized"},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},
          {"kv_cache_scheme", nullptr},
          {"ignore", ignore},
          {"config_groups", groups}};
}

}  // namespace

ordered_json quantization_config(const PackedFolder& folder) {
  switch (*folder.form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2: return gptq_config(folder);
    case PackedForm::kAwq: return awq_config(folder);
    case PackedForm::kCompressedTensors:
    case PackedForm::kPlainCodes: break;
  }
  return compressed_tensors_config(folder);
}

}  // namespace mcompress
