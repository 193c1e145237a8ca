#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "mcompress/methods/grid.h"
#include "mcompress/methods/plan.h"
#include "mcompress/model/compressed_weight.h"

namespace mcompress {

// The core of a method: the compressed form of one float weight. `multiplied` tells whether some
// layer uses it as a matrix, or it is only looked up in.
using Core = std::function<CompressedWeight(const at::Tensor& weight, bool multiplied)>;

struct CompressedLayers {
  std::map<std::string, CompressedWeight> weights;       // by layer name
  std::vector<std::optional<QuantizationError>> errors;  // by layer index, empty for kept layers
};

// The one loop over the layers of a program: compresses those that `plan` chose, one decision a
// layer; layers that share a weight share the result. Shows progress and stops at a signal. Throws
// Error(65) naming a layer that holds NaN or infinity, or overflows float16.
CompressedLayers compress_layers(const std::vector<Layer>& layers, const std::vector<Decision>& plan,
                                 const Core& core);

}  // namespace mcompress
