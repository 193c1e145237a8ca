#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/formats/array.h"
#include "mcompress/model/compressed_weight.h"

namespace mcompress {

// A weight [N, K] in groups as GPTQ's checkpoints hold it (AutoGPTQ and GPTQModel, qlinear), beside the name
// of its layer and in place of its ".weight". Codes are packed along K and zero points along N, as streams of
// bits.
struct GptqTensors {
  at::Tensor qweight;  // int32 [K * bits / 32, N]
  at::Tensor qzeros;   // int32 [groups, N * bits / 32]
  at::Tensor scales;   // float16 [groups, N]
  at::Tensor g_idx;    // int32 [K], the group of each input channel
};
constexpr std::array<const char*, 4> kGptqParts = {".qweight", ".qzeros", ".scales", ".g_idx"};

// Type and shape of one of kGptqParts.
struct GptqShape {
  DType dtype;
  std::vector<int64_t> shape;
};
std::array<GptqShape, 4> gptq_shapes(int64_t outputs, int64_t inputs, int64_t groups, int bits);

// Why readers cannot take such a weight; empty where they can.
std::string gptq_obstacle(int64_t outputs, int64_t inputs, int bits);

// The first version of the format ("gptq") stores zero points less one, so that they are from 1 to 2^bits -
// 1; the second ("gptq_v2") as they are.
enum class GptqZeros { kLessOne, kPlain };

GptqTensors pack_gptq(const IntGroup& weight, GptqZeros zeros);

// Throws Error(65), naming the layer, where the tensors do not fit each other, a group is out of range, or a
// scale is not finite.
IntGroup unpack_gptq(const GptqTensors& tensors, GptqZeros zeros, const std::string& layer);

}  // namespace mcompress
