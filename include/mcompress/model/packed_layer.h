#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/formats/array.h"
#include "mcompress/model/compressed_weight.h"

namespace mcompress {

// How checkpoints hold a weight [N, K] in groups: as tensors of integers, named after its layer, in place of
// its ".weight". Codes and zero points are streams of bits in words of 32, the first code lowest.
enum class PackedForm {
  // AutoGPTQ and GPTQModel, qlinear ("gptq"): .qweight [K bits / 32, N] packed along K, .qzeros [groups, N
  // bits / 32] packed along N and less one, .scales [groups, N], .g_idx [K], the group of each channel.
  kGptq,
  kGptqV2,  // the same with zero points as they are ("gptq_v2")
  // AutoAWQ, version gemm, 4 bits: .qweight [K, N / 8] and .qzeros [groups, N / 8], both packed along N in
  // the order 0, 2, 4, 6, 1, 3, 5, 7 of eight columns, .scales [groups, N].
  kAwq,
  // compressed-tensors, pack-quantized, 2 to 8 bits: .weight_packed [N, K bits / 32], .weight_scale [N,
  // groups], .weight_shape [2], and where it is asymmetric .weight_zero_point [N bits / 32, groups] packed
  // along N.
  kCompressedTensors,
  // Codes that are not packed, as compressed-tensors has them (int-quantized): .weight I8 [N, K], each code
  // less 2^(bits - 1), .weight_scale [N, groups], and where it is asymmetric .weight_zero_point I8 [N,
  // groups], less as much.
  kPlainCodes,
};

const char* name_of(PackedForm form);  // as --format has it
inline bool is_gptq(PackedForm form) { return form == PackedForm::kGptq || form == PackedForm::kGptqV2; }
// Whose configuration is that of compressed-tensors.
inline bool is_compressed_tensors(PackedForm form) {
  return form == PackedForm::kCompressedTensors || form == PackedForm::kPlainCodes;
}

// A linear layer, or an embedding, that is packed.
struct PackedLayer {
  std::string name;  // of its tensors, without ".weight"
  int64_t outputs = 0, inputs = 0;
  int bits = 4;
  int64_t group_size = -1;  // -1: all input channels
  bool symmetric = true;
  bool embedding = false;  // [rows, width]

  int64_t groups() const;
};

// One of the tensors of a layer; the first of them tells the form's layers from others, of plain codes by its
// type.
struct PackedPart {
  std::string suffix;  // ".qweight"
  DType dtype;
  std::vector<int64_t> shape;
};
std::vector<PackedPart> packed_parts(PackedForm form, const PackedLayer& layer);
// Of all that the form's layers may have, the first one always.
const std::vector<std::string>& packed_suffixes(PackedForm form);
uint64_t packed_bytes(PackedForm form, const PackedLayer& layer);

// Why the form, or its readers, cannot take a layer of such sizes; empty where they can.
std::string packed_obstacle(PackedForm form, int64_t outputs, int64_t inputs);
// Why the form has no place for the layer's bits or groups, and what to ask for; empty where it has.
std::string packed_refusal(PackedForm form, const PackedLayer& layer);

using PackedTensors = std::map<std::string, at::Tensor>;  // by suffix

// Of a weight whose scales are float16.
PackedTensors pack_layer(PackedForm form, bool symmetric, const IntGroup& weight);

// [N, K] of a layer whose tensors these are. Throws Error(65) where they do not say.
std::pair<int64_t, int64_t> packed_sizes(PackedForm form, const PackedTensors& tensors,
                                         const std::string& layer);

// Throws Error(65), naming the layer, where the tensors do not fit each other, a group is out of range, or a
// scale is not finite.
IntGroup unpack_layer(PackedForm form, const PackedTensors& tensors, const std::string& layer);

}  // namespace mcompress
