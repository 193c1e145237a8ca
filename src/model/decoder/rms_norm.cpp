#include "rms_norm.h"

#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/wide.h"

namespace mcompress {

namespace {

// LibTorch's own operators would go over the memory of all rows six times.

MCOMPRESS_WIDE float sum_of_squares(const float* x, int64_t count) {
  constexpr int64_t kLanes = 16;  // sums beside each other, which have one order in any register
  std::array<float, kLanes> sums{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane)
      sums[static_cast<size_t>(lane)] += x[i + lane] * x[i + lane];
  }
  float sum = 0;
  for (; i < count; ++i) sum += x[i] * x[i];
  for (const float part : sums) sum += part;
  return sum;
}

MCOMPRESS_WIDE void scale(const float* x, float factor, const float* weight, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = x[i] * factor * weight[i];
}

// bfloat16 is the upper half of float32.
float widened(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16U); }
uint16_t narrowed(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t half_to_even = (bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U;
  return static_cast<uint16_t>(x == x ? half_to_even : 0x7FC0U);
}

MCOMPRESS_WIDE void widen(const uint16_t* x, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widened(x[i]);
}

MCOMPRESS_WIDE void scale_narrow(const float* x, float factor, const float* weight, bool twice, int64_t count,
                                 uint16_t* to) {
  if (twice) {
    for (int64_t i = 0; i < count; ++i) to[i] = narrowed(widened(narrowed(x[i] * factor)) * weight[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = narrowed(x[i] * factor * weight[i]);
  }
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& given, const at::Tensor& weight, double epsilon) {
  const at::Tensor x = given.contiguous(), factors = weight.to(at::kFloat).contiguous();
  at::Tensor result = at::empty_like(x);
  const int64_t width = x.size(-1), rows = width == 0 ? 0 : x.numel() / width;
  const bool narrow = x.scalar_type() == at::kBFloat16, twice = weight.scalar_type() == x.scalar_type();
  const float* w = factors.const_data_ptr<float>();
  constexpr int64_t kGrain = 16;
  at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> wide(narrow ? static_cast<size_t>(width) : 0);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = row * width;
      const float* values = wide.data();
      if (narrow) {
        widen(static_cast<const uint16_t*>(x.const_data_ptr()) + first, width, wide.data());
      } else {
        values = x.const_data_ptr<float>() + first;
      }
      const float mean = sum_of_squares(values, width) / static_cast<float>(width);
      const float factor = 1 / std::sqrt(mean + static_cast<float>(epsilon));
      if (narrow) {
        scale_narrow(values, factor, w, twice, width, static_cast<uint16_t*>(result.data_ptr()) + first);
      } else {
        scale(values, factor, w, width, result.data_ptr<float>() + first);
      }
    }
  });
  return result;
}

}  // namespace mcompress
