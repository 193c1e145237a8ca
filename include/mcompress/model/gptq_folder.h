#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "mcompress/base/output.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/gptq_tensors.h"

namespace mcompress {

// A linear layer that is written in GPTQ's format.
struct GptqLayer {
  std::string name;  // of its tensors, without ".weight"
  int64_t outputs = 0, inputs = 0, groups = 0;
  int bits = 4;
  int64_t group_size = -1;  // -1: all input channels
};

// What the configuration says beside the tensors (GPTQModel, quantization/config.py).
struct GptqFolder {
  std::vector<GptqLayer> layers;
  std::vector<std::string> kept;  // linear layers of blocks that stay as they are
  // Where the same are kept in every block: the others without the block's name, by stage, as transformers
  // asks.
  std::vector<std::vector<std::string>> parts;
  int bits = 4;  // of most layers; others are overrides, which GPTQModel, vLLM and SGLang know
  int64_t group_size = -1;
  bool symmetric = true, act_order = false, static_groups = false, true_sequential = true, head = false;
  double damping = 0.01;
  GptqZeros zeros = GptqZeros::kLessOne;
  uint64_t shard_bytes = uint64_t{5} << 30;  // of tensors in a file
  std::string version;                       // of this program
};

// Writes a Hugging Face folder beside its `source`: qweight, qzeros, scales and g_idx in place of the weights
// of the layers, all other floating tensors as float16, in one model.safetensors or shards with their index;
// config.json with a quantization_config, the same as quantize_config.json; every other file as it is.
// `give` is called once and hands over every layer, in any order. Throws Error(65) naming a tensor beyond
// float16.
using TakeLayer = std::function<void(const std::string& name, const IntGroup& weight)>;
void write_gptq_folder(const CheckpointFiles& checkpoint, const std::string& source,
                       const GptqFolder& options, const std::function<void(const TakeLayer& take)>& give,
                       OutputFolder& folder);
uint64_t predict_gptq_folder_bytes(const CheckpointFiles& checkpoint, const std::string& source,
                                   const GptqFolder& options);

// Of the tensors of one layer.
uint64_t gptq_bytes(const GptqLayer& layer);

}  // namespace mcompress
