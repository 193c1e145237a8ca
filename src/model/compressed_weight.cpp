#include "mcompress/model/compressed_weight.h"

#include <ATen/ATen.h>

namespace mcompress {

at::Tensor dequantize_rows(const CompressedWeight& weight, int64_t begin, int64_t end) {
  if (const auto* dense = std::get_if<Dense>(&weight)) {
    return dense->values.slice(0, begin, end).flatten(1).to(at::kFloat);
  }
  if (const auto* group = std::get_if<IntGroup>(&weight)) {
    const auto by_channel = [&](const at::Tensor& of) {
      return of.slice(0, begin, end).to(at::kFloat).index_select(1, group->groups);
    };
    return group->codes.slice(0, begin, end)
        .to(at::kFloat)
        .sub_(by_channel(group->zero))
        .mul_(by_channel(group->scale));
  }
  const auto& int8 = std::get<IntChannel>(weight);
  const at::Tensor codes = int8.codes.slice(0, begin, end).flatten(1).to(at::kFloat);
  return codes * int8.scale.slice(0, begin, end).unsqueeze(1);
}

uint64_t stored_bytes(const CompressedWeight& weight) {
  if (const auto* dense = std::get_if<Dense>(&weight)) return dense->values.nbytes();
  const auto packed = [](const at::Tensor& codes, int bits) {
    return (static_cast<uint64_t>(codes.numel()) * static_cast<uint64_t>(bits) + 7) / 8;
  };
  if (const auto* group = std::get_if<IntGroup>(&weight))
    return packed(group->codes, group->bits) + packed(group->zero, group->bits) + group->scale.nbytes();
  const auto& codes = std::get<IntChannel>(weight);
  return packed(codes.codes, codes.bits) + codes.scale.nbytes();
}

const at::Tensor& stored_values(const CompressedWeight& weight) {
  if (const auto* dense = std::get_if<Dense>(&weight)) return dense->values;
  if (const auto* group = std::get_if<IntGroup>(&weight)) return group->codes;
  return std::get<IntChannel>(weight).codes;
}

Runtime runtime_of(const at::Tensor& weight, Runtime wanted) {
  constexpr int64_t kSmall = 32'768;  // measured: two threads, 1 to 256 rows
  return wanted == Runtime::kInt8 && weight.numel() <= kSmall ? Runtime::kPortable : wanted;
}

}  // namespace mcompress
