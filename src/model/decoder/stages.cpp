#include "stages.h"

namespace mcompress {

int64_t StoredLayer::outputs() const {
  int64_t sum = 0;
  for (const Part& part : parts) sum += part.outputs;
  return sum;
}

std::vector<std::vector<StoredLayer>> stored_layers(const DecoderConfig& config) {
  const DecoderNames& names = config.names;
  using Weights = BlockWeights;
  const int64_t attention = config.heads * config.head_width, shared = config.kv_heads * config.head_width,
                width = config.width, inner = config.inner;
  const StoredLayer::Part query = {&Weights::query, attention}, key = {&Weights::key, shared},
                          value = {&Weights::value, shared}, gate = {&Weights::gate, inner},
                          up = {&Weights::up, inner};
  std::vector<StoredLayer> inputs, widening;
  if (!names.query_key_value.empty()) {
    inputs = {{names.query_key_value, {query, key, value}, width, config.qkv_bias}};
  } else {
    inputs = {{names.query, {query}, width, config.qkv_bias},
              {names.key, {key}, width, config.qkv_bias},
              {names.value, {value}, width, config.qkv_bias}};
  }
  if (!names.gate_up.empty()) {
    widening = {{names.gate_up, {gate, up}, width, config.mlp_bias}};
  } else {
    if (config.gated) widening.push_back({names.gate, {gate}, width, config.mlp_bias});
    widening.push_back({names.up, {up}, width, config.mlp_bias});
  }
  return {inputs,
          {{names.output, {{&Weights::output, width}}, attention, config.output_bias}},
          widening,
          {{names.down, {{&Weights::down, width}}, inner, config.mlp_bias}}};
}

std::vector<std::vector<DecoderLayer>> stages_of(const DecoderConfig& config, int64_t block) {
  std::vector<std::vector<DecoderLayer>> stages;
  for (const auto& stage : stored_layers(config)) {
    stages.emplace_back();
    for (const StoredLayer& layer : stage)
      stages.back().push_back(
          {config.block_name(block) + layer.name, layer.outputs(), layer.inputs, layer.biased});
  }
  return stages;
}

}  // namespace mcompress
