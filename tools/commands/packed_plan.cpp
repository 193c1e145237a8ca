#include "packed_plan.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/interrupt.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/pieces.h"
#include "mcompress/report/version.h"

namespace mcompress::cli {

namespace {

const GroupedLayer& layer_named(const PackedPlan& plan, const std::string& name) {
  return *std::find_if(plan.layers.begin(), plan.layers.end(),
                       [&](const GroupedLayer& layer) { return layer.name == name; });
}

// Refuses settings that the format has no place for.
void check_settings(const PackedPlan& plan, const GroupOptions& groups) {
  const auto form = form_of(groups);
  if (!form) return;
  std::optional<int64_t> size;
  for (const GroupedLayer& layer : plan.layers) {
    const auto grid = plan.grids.find(layer.name);
    if (grid == plan.grids.end()) continue;
    std::string refusal = packed_refusal(*form, packed_layer(layer, grid->second));
    if (refusal.empty() && layer.embedding && !groups.symmetric)
      refusal =
          "transformers does not read 8-bit embeddings beside layers with zero points; leave out --asym";
    if (!refusal.empty()) throw error(Exit::kUsage, "layer '{}': {}", layer.name, refusal);
    if (*form == PackedForm::kAwq && size && *size != grid->second.group_size)
      throw error(
          Exit::kUsage,
          "--format awq has one group size for all layers, and '{}' would have {} in place of {}; use "
          "--group-size {}, or --format gptq",
          layer.name, grid->second.group_size, *size, std::min(*size, grid->second.group_size));
    size = grid->second.group_size;
  }
  if (*form == PackedForm::kAwq && groups.head)
    throw error(Exit::kUsage, "--format awq has no output layer; leave out --lm-head, or use --format gptq");
}

std::string obstacle_of(const GroupedLayer& layer, const GroupOptions& groups) {
  const auto form = form_of(groups);
  return form ? packed_obstacle(*form, layer.outputs, layer.inputs) : "";
}

void finish_plan(PackedPlan& plan, const CompressOptions& options, const GroupOptions& groups) {
  if (groups.format == kTorchScriptFormat)
    throw error(Exit::kUsage,
                "--format torchscript goes with TorchScript, and '{}' is a Hugging Face folder; use gptq, "
                "awq, compressed-tensors, safetensors or dequantized",
                options.model);
  decide_all(plan.decisions, options, [](LayerKind) { return std::string(); });
  plan.grids = choose_grids(groups, plan.layers, plan.decisions);
  if (plan.grids.empty()) throw bad_data("'{}' has no layer left to round", options.model);
  check_settings(plan, groups);
}

Decision decision_of(const Array& array, const std::string& name, LayerKind kind,
                     const std::string& obstacle) {
  return {name, kind, obstacle, {array.bytes.data(), array.shape, array.strides}, array.bytes.size()};
}

// The layers of a block that are packed, by stage, where some are left alone and the same ones in every
// block.
std::vector<std::vector<std::string>> uniform_parts(const PackedFolder& folder, const DecoderConfig& config) {
  std::set<std::string> packed;
  for (const PackedLayer& layer : folder.layers) packed.insert(layer.name);
  std::vector<std::vector<std::string>> parts;
  bool some_left = false;
  for (int64_t block = 0; block < config.blocks; ++block) {
    std::vector<std::vector<std::string>> here;
    for (const auto& stage : stages_of(config, block)) {
      here.emplace_back();
      for (const DecoderLayer& layer : stage) {
        const bool rounded = packed.contains(layer.name);
        some_left = some_left || !rounded;
        if (rounded) here.back().push_back(layer.name.substr(config.block_name(block).size()));
      }
      if (here.back().empty()) here.pop_back();
    }
    if (block > 0 && here != parts) return {};
    parts = std::move(here);
  }
  return some_left ? parts : std::vector<std::vector<std::string>>();
}

}  // namespace

std::optional<DecoderConfig> language_config(const std::string& model, std::string* why) {
  try {
    return read_model_config(model);
  } catch (const Error& failure) {
    if (failure.code() != Exit::kBadData) throw;
    if (why != nullptr) *why = failure.what();
    return std::nullopt;
  }
}

PackedPlan plan_language(const DecoderConfig& config, const CheckpointFiles& checkpoint,
                         const CompressOptions& options, const GroupOptions& groups) {
  PackedPlan plan;
  std::map<std::string, const Array*> arrays;
  for (const Array& array : checkpoint.arrays) arrays[array.name] = &array;
  const auto add = [&](const std::string& name, LayerKind kind, const std::string& obstacle) {
    plan.decisions.push_back(decision_of(*arrays.at(name + ".weight"), name, kind, obstacle));
  };
  const auto add_linear = [&](const DecoderLayer& layer, const std::string& obstacle) {
    plan.layers.push_back({layer.name, layer.outputs, layer.inputs});
    add(layer.name, LayerKind::kLinear,
        obstacle.empty() ? obstacle_of(plan.layers.back(), groups) : obstacle);
  };
  for (int64_t block = 0; block < config.blocks; ++block) {
    for (const auto& stage : stages_of(config, block)) {
      for (const DecoderLayer& layer : stage) add_linear(layer, "");
    }
  }
  const std::string embedding = config.names.base + config.names.embedding;
  plan.layers.push_back({embedding, config.vocabulary, config.width, true});
  add(embedding, LayerKind::kEmbedding,
      groups.embedding_bits > 0 ? "" : "embeddings are left alone without --embeddings");
  const auto form = form_of(groups);
  if (config.tied_head && groups.embedding_bits > 0 && form && is_compressed_tensors(*form))
    throw error(
        Exit::kUsage,
        "--embeddings: the embedding of '{}' is its output layer too, which readers of {} do not find "
        "in a packed one; use --format dequantized, or 'mcompress convert --format gguf'",
        options.model, folder_format(groups));
  if (config.tied_head && groups.head)
    throw error(Exit::kUsage, "--lm-head: the output layer of '{}' is its embedding, which is left alone",
                options.model);
  if (!config.tied_head)
    add_linear({config.names.head, config.vocabulary, config.width, false},
               groups.head ? "" : "the output layer is left alone without --lm-head");
  finish_plan(plan, options, groups);
  return plan;
}

PackedPlan plan_matrices(const CheckpointFiles& checkpoint, const CompressOptions& options,
                         const GroupOptions& groups) {
  PackedPlan plan;
  const std::set<std::string> names = names_of(checkpoint);
  for (const Array& array : checkpoint.arrays) {
    LayerKind kind{};
    if (!array.name.ends_with(".weight") || !guess_kind(array, kind)) continue;
    const std::string name = array.name.substr(0, array.name.rfind('.'));
    std::string obstacle = obstacle_of(array, names);
    const bool embedding = kind == LayerKind::kEmbedding;
    if (embedding || kind == LayerKind::kLinear) {
      plan.layers.push_back({name, array.shape[0], array.shape[1], embedding});
      if (obstacle.empty() && embedding && groups.embedding_bits == 0)
        obstacle = "embeddings are left alone without --embeddings";
      if (obstacle.empty() && name.ends_with("lm_head") && !groups.head)
        obstacle = "the output layer is left alone without --lm-head";
      if (obstacle.empty() && !embedding) obstacle = obstacle_of(plan.layers.back(), groups);
    }
    plan.decisions.push_back(decision_of(array, name, kind, obstacle));
  }
  finish_plan(plan, options, groups);
  return plan;
}

PackedLayer packed_layer(const GroupedLayer& layer, const GroupGrid& grid) {
  return {layer.name,      layer.outputs,  layer.inputs,   grid.bits,
          grid.group_size, grid.symmetric, layer.embedding};
}

void finish_folder(const DecoderConfig* config, PackedFolder& folder) {
  std::map<std::pair<int, int64_t>, size_t> uses;  // of bits and group sizes
  for (const PackedLayer& layer : folder.layers) {
    ++uses[{layer.bits, layer.group_size}];
    folder.head = folder.head || layer.name == folder.head_name;
  }
  // What most layers have is the configuration's own.
  const auto most = std::max_element(uses.begin(), uses.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  folder.bits = most->first.first;
  folder.group_size = most->first.second;
  folder.transposed = config != nullptr && config->transposed;
  if (config != nullptr) folder.parts = uniform_parts(folder, *config);
  folder.version = kVersion;
}

PackedFolder folder_of(const PackedPlan& plan, const DecoderConfig* config, const GroupOptions& groups) {
  PackedFolder folder;
  folder.form = form_of(groups);
  if (config != nullptr) folder.head_name = config->names.head;
  for (const GroupedLayer& layer : plan.layers) {
    const auto grid = plan.grids.find(layer.name);
    if (grid == plan.grids.end()) {
      if (layer.name != folder.head_name && !layer.embedding) folder.kept.push_back(layer.name);
      continue;
    }
    folder.layers.push_back(packed_layer(layer, grid->second));
  }
  folder.symmetric = groups.symmetric;
  folder.shard_bytes = groups.shard_bytes;
  finish_folder(config, folder);
  return folder;
}

void check_values(const CheckpointFiles& checkpoint, const PackedPlan& plan, const GroupOptions& groups) {
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const bool rounded =
        array.name.ends_with(".weight") && plan.grids.contains(array.name.substr(0, array.name.rfind('.')));
    if (!is_floating(array.dtype) || array.bytes.empty() || (!rounded && !form_of(groups))) continue;
    check_interrupt();
    const at::Tensor values = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
    const auto [least, most] = values.aminmax();
    const double largest = std::max(most.item<double>(), -least.item<double>());
    checkpoint.files[checkpoint.file_of[i]]->drop(array.bytes);
    if (rounded && !std::isfinite(largest))
      throw bad_data("tensor '{}' holds NaN or infinity; repair the model or leave it out with --ignore",
                     array.name);
    if (!rounded && !(largest <= kLargestHalf))
      throw bad_data(
          "tensor '{}' has values beyond float16, in which readers of packed weights compute; use --format "
          "dequantized",
          array.name);
  }
}

void edit_tied_head(const CheckpointFiles& checkpoint, const DecoderConfig& config,
                    std::map<size_t, EditRows>& edits) {
  const auto index_of = [&](const std::string& name) {
    const auto found = std::find_if(checkpoint.arrays.begin(), checkpoint.arrays.end(),
                                    [&](const Array& array) { return array.name == name; });
    return static_cast<size_t>(found - checkpoint.arrays.begin());
  };
  const auto embedding = edits.find(index_of(config.names.base + config.names.embedding + ".weight"));
  const size_t head = index_of(config.names.head + ".weight");
  if (config.tied_head && embedding != edits.end() && head < checkpoint.arrays.size())
    edits[head] = embedding->second;
}

LayerRecord record_of(const Decision& decision, const PackedPlan& plan, const GroupOptions& groups,
                      Calibration& calibration) {
  const auto grid = plan.grids.find(decision.name);
  if (grid == plan.grids.end()) return record_of(decision, "", 0);
  const PackedLayer layer = packed_layer(layer_named(plan, decision.name), grid->second);
  const auto form = form_of(groups);
  const uint64_t bytes = packed_bytes(form.value_or(PackedForm::kGptq), layer);
  LayerRecord record =
      record_of(decision, fmt::format("int{}", layer.bits), form ? bytes : decision.bytes_before);
  record.parameters = layer.outputs * layer.inputs;
  calibration.weights += *record.parameters;
  calibration.bytes += bytes;
  return record;
}

}  // namespace mcompress::cli
