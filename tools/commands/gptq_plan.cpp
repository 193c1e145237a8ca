#include <algorithm>

#include "gptq_language.h"
#include "mcompress/report/version.h"

namespace mcompress::cli {

LanguagePlan plan_language(const DecoderConfig& config, const CheckpointFiles& checkpoint,
                           const GptqCommand& options) {
  LanguagePlan plan;
  std::map<std::string, const Array*> arrays;
  for (const Array& array : checkpoint.arrays) arrays[array.name] = &array;
  const auto add = [&](const std::string& name, LayerKind kind, const std::string& obstacle) {
    const Array& array = *arrays.at(name + ".weight");
    plan.decisions.push_back(
        {name, kind, obstacle, {array.bytes.data(), array.shape, array.strides}, array.bytes.size()});
  };
  const auto add_linear = [&](const DecoderLayer& layer, std::string obstacle) {
    plan.layers.push_back({layer.name, layer.outputs, layer.inputs});
    if (options.format == "gptq" && obstacle.empty())
      obstacle = gptq_obstacle(layer.outputs, layer.inputs, static_cast<int>(options.bits));
    add(layer.name, LayerKind::kLinear, obstacle);
  };
  for (int64_t block = 0; block < config.blocks; ++block) {
    for (const auto& stage : stages_of(config, block)) {
      for (const DecoderLayer& layer : stage) add_linear(layer, "");
    }
  }
  add(config.names.base + config.names.embedding, LayerKind::kEmbedding, "the embedding is left alone");
  if (config.tied_head && options.head)
    throw error(Exit::kUsage, "--lm-head: the output layer of '{}' is its embedding, which is left alone",
                options.model);
  if (!config.tied_head)
    add_linear({config.names.head, config.vocabulary, config.width, false},
               options.head ? "" : "the output layer is left alone without --lm-head");
  decide_all(plan.decisions, options, [](LayerKind) { return std::string(); });
  plan.grids = choose_grids(options, plan.layers, plan.decisions);
  if (plan.grids.empty()) throw bad_data("'{}' has no layer left to round", options.model);
  return plan;
}

namespace {

int64_t groups_of(int64_t inputs, int64_t group_size) {
  return group_size < 0 || group_size >= inputs ? 1 : (inputs + group_size - 1) / group_size;
}

// The layers of a block that are rounded, by stage, where some are left alone and the same ones in every
// block.
std::vector<std::vector<std::string>> uniform_parts(const LanguagePlan& plan, const DecoderConfig& config) {
  std::vector<std::vector<std::string>> parts;
  bool some_left = false;
  for (int64_t block = 0; block < config.blocks; ++block) {
    std::vector<std::vector<std::string>> here;
    for (const auto& stage : stages_of(config, block)) {
      here.emplace_back();
      for (const DecoderLayer& layer : stage) {
        const bool rounded = plan.grids.contains(layer.name);
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

GptqLayer gptq_layer(const GroupedLayer& layer, const GroupGrid& grid) {
  return {layer.name, layer.outputs,  layer.inputs, groups_of(layer.inputs, grid.group_size),
          grid.bits,  grid.group_size};
}

GptqFolder folder_of(const LanguagePlan& plan, const DecoderConfig& config, const GptqCommand& options) {
  GptqFolder folder;
  std::map<std::pair<int, int64_t>, size_t> uses;  // of bits and group sizes
  for (const GroupedLayer& layer : plan.layers) {
    const auto grid = plan.grids.find(layer.name);
    if (grid == plan.grids.end()) {
      if (layer.name != config.names.head) folder.kept.push_back(layer.name);
      continue;
    }
    folder.layers.push_back(gptq_layer(layer, grid->second));
    ++uses[{grid->second.bits, grid->second.group_size}];
  }
  folder.parts = uniform_parts(plan, config);
  // What most layers have is the configuration's own.
  const auto most = std::max_element(uses.begin(), uses.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  folder.bits = most->first.first;
  folder.group_size = most->first.second;
  folder.symmetric = options.symmetric;
  folder.act_order = options.act_order;
  folder.static_groups = options.static_groups;
  folder.true_sequential = options.true_sequential;
  folder.head = plan.grids.contains(config.names.head);
  folder.damping = options.damping;
  folder.zeros = options.symmetric ? GptqZeros::kLessOne : GptqZeros::kPlain;
  folder.shard_bytes = options.shard_bytes;
  folder.version = kVersion;
  return folder;
}

void warn_of_readers(const LanguagePlan& plan, const GptqFolder& folder, const GptqCommand& options,
                     Report& report) {
  if (options.format != "gptq") return;
  if (!options.symmetric)
    report.warnings.emplace_back(
        "zero points are written as gptq_v2, which GPTQModel, transformers and SGLang read, and AutoGPTQ and "
        "newer "
        "vLLM do not; --sym is read by all");
  if (folder.parts.empty() && !folder.kept.empty())
    report.warnings.emplace_back(
        "layers are left alone in some blocks only, which GPTQModel and vLLM read, and transformers does "
        "not");
  bool tail = false;
  for (const GroupedLayer& layer : plan.layers) {
    const auto grid = plan.grids.find(layer.name);
    tail = tail || (grid != plan.grids.end() && grid->second.group_size > 0 &&
                    layer.inputs % grid->second.group_size != 0);
  }
  if (tail)
    report.warnings.emplace_back("groups that do not divide the inputs are read by GPTQModel, not by vLLM");
}

}  // namespace mcompress::cli
