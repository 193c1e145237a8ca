#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "mcompress/base/output.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/packed_layer.h"

namespace mcompress {

// What the quantization_config of a Hugging Face folder says of its weights.
struct FolderQuantization {
  std::string text;            // "gptq, 4 bits"; empty where there is none
  bool rounds_inputs = false;  // those of quantized layers, to 8 bits a token
  std::optional<PackedForm> form = {};
};
// Throws Error(65) for weights that cannot be computed with.
FolderQuantization read_quantization(const std::string& folder);

// The packed layers of a checkpoint.
class PackedReader {
 public:
  // Throws Error(65) for a layer that lacks some of its tensors, or has a weight beside them.
  PackedReader(const CheckpointFiles& checkpoint, PackedForm form);

  // By name, with their sizes [N, K].
  const std::map<std::string, std::pair<int64_t, int64_t>>& layers() const { return layers_; }
  bool is_part(const std::string& array) const { return parts_.contains(array); }

  IntGroup read(const std::string& layer) const;  // as unpack_layer()

 private:
  PackedTensors tensors_of(const std::string& layer, PackedForm form) const;

  const CheckpointFiles& checkpoint_;
  PackedForm form_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::pair<int64_t, int64_t>> layers_;
  std::set<std::string> parts_;  // names of tensors that these may have
};

// The form of packed layers that the names of its tensors are of, whatever a configuration says.
std::optional<PackedForm> guess_form(const CheckpointFiles& checkpoint);

// A Hugging Face folder of packed layers: what its configuration says beside the tensors.
struct PackedFolder {
  std::optional<PackedForm> form = PackedForm::kGptq;  // none: float32, plain weights again
  std::vector<PackedLayer> layers;
  std::vector<std::string> kept;  // linear layers that stay as they are, the head apart
  // Where the same are kept in every block: the others without the block's name, by stage, as transformers
  // asks of GPTQ.
  std::vector<std::vector<std::string>> parts;
  // Of most layers; others are overrides, which GPTQModel, vLLM and SGLang know of GPTQ.
  int bits = 4;
  int64_t group_size = -1;
  bool symmetric = true;
  std::string head_name = "lm_head";  // of the output layer
  bool head = false;                  // it is one of the layers
  // Of GPTQ only.
  bool act_order = false, static_groups = false, true_sequential = true;
  double damping = 0.01;
  uint64_t shard_bytes = 5'000'000'000;  // of tensors in a file
  std::string version;                   // of this program
  // How the layers are packed in the source, where they are.
  std::optional<PackedForm> source_form = {};
  bool transposed = false;  // plain weights are stored [inputs, outputs], but for the output layer
  std::map<std::string, at::Tensor> changed = {};  // tensors that stay but for their values, by name
};

// Writes a Hugging Face folder beside its `source`: packed tensors in place of the weights of the layers, all
// other floating tensors as float16 (where nothing is packed, as they are), in one model.safetensors or
// shards with their index; config.json with the quantization_config of the form (for GPTQ the same as
// quantize_config.json too); every other file as it is. `give` is called once and hands over every layer, in
// any order. Throws Error(65) naming a tensor beyond float16.
using TakeLayer = std::function<void(const std::string& name, const IntGroup& weight)>;
void write_packed_folder(const CheckpointFiles& checkpoint, const std::string& source,
                         const PackedFolder& options, const std::function<void(const TakeLayer& take)>& give,
                         OutputFolder& folder);
uint64_t predict_packed_folder_bytes(const CheckpointFiles& checkpoint, const std::string& source,
                                     const PackedFolder& options);

}  // namespace mcompress
