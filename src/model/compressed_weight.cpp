#include "mcompress/model/compressed_weight.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace mcompress {

namespace {

// In one pass, since it is done for each layer more than once.
at::Tensor dequantize_groups(const IntGroup& weight, int64_t begin, int64_t end) {
  const auto part = [&](const at::Tensor& of) { return of.slice(0, begin, end).contiguous(); };
  const at::Tensor codes = part(weight.codes), scale = part(weight.scale).to(at::kFloat),
                   zero = part(weight.zero).to(at::kFloat), groups = weight.groups.contiguous();
  const int64_t channels = codes.size(1), count = scale.size(1);
  at::Tensor values = at::empty({codes.size(0), channels});
  const int64_t* group = groups.const_data_ptr<int64_t>();
  constexpr int64_t kGrain = 8;
  at::parallel_for(0, codes.size(0), kGrain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const uint8_t* code = codes.const_data_ptr<uint8_t>() + row * channels;
      const float* scales = scale.const_data_ptr<float>() + row * count;
      const float* zeros = zero.const_data_ptr<float>() + row * count;
      float* to = values.data_ptr<float>() + row * channels;
      for (int64_t j = 0; j < channels; ++j)
        to[j] = (static_cast<float>(code[j]) - zeros[group[j]]) * scales[group[j]];
    }
  });
  return values;
}

}  // namespace

at::Tensor dequantize_rows(const CompressedWeight& weight, int64_t begin, int64_t end) {
  if (const auto* dense = std::get_if<Dense>(&weight)) {
    return dense->values.slice(0, begin, end).flatten(1).to(at::kFloat);
  }
  if (const auto* group = std::get_if<IntGroup>(&weight)) return dequantize_groups(*group, begin, end);
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
