#include "mcompress/model/compressed_weight.h"

#include <ATen/ATen.h>

namespace mcompress {

at::Tensor dequantize(const CompressedWeight& weight) {
  if (const auto* dense = std::get_if<Dense>(&weight)) return dense->values.to(at::kFloat);
  const auto& int8 = std::get<Int8Channel>(weight);
  const at::Tensor rows = int8.codes.flatten(1).to(at::kFloat) * int8.scale.unsqueeze(1);
  return rows.view(int8.codes.sizes());
}

uint64_t stored_bytes(const CompressedWeight& weight) {
  if (const auto* dense = std::get_if<Dense>(&weight)) return dense->values.nbytes();
  const auto& int8 = std::get<Int8Channel>(weight);
  return int8.codes.nbytes() + int8.scale.nbytes();
}

}  // namespace mcompress
