#include "mcompress/model/compressed_weight.h"

#include <ATen/ATen.h>

namespace mcompress {

at::Tensor dequantize_rows(const CompressedWeight& weight, int64_t begin, int64_t end) {
  if (const auto* dense = std::get_if<Dense>(&weight)) {
    return dense->values.slice(0, begin, end).flatten(1).to(at::kFloat);
  }
  const auto& int8 = std::get<IntChannel>(weight);
  const at::Tensor codes = int8.codes.slice(0, begin, end).flatten(1).to(at::kFloat);
  return codes * int8.scale.slice(0, begin, end).unsqueeze(1);
}

uint64_t stored_bytes(const CompressedWeight& weight) {
  if (const auto* dense = std::get_if<Dense>(&weight)) return dense->values.nbytes();
  const auto& codes = std::get<IntChannel>(weight);
  const auto bits = static_cast<uint64_t>(codes.codes.numel()) * static_cast<uint64_t>(codes.bits);
  return (bits + 7) / 8 + codes.scale.nbytes();
}

const at::Tensor& stored_values(const CompressedWeight& weight) {
  const auto* dense = std::get_if<Dense>(&weight);
  return dense != nullptr ? dense->values : std::get<IntChannel>(weight).codes;
}

Runtime runtime_of(const at::Tensor& weight, Runtime wanted) {
  constexpr int64_t kSmall = 32'768;  // measured: two threads, 1 to 256 rows
  return wanted == Runtime::kInt8 && weight.numel() <= kSmall ? Runtime::kPortable : wanted;
}

}  // namespace mcompress
