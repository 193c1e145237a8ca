#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace mcompress {

// IEEE binary16 to binary32.
inline float widened(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16U;
  const uint32_t exponent = (half >> 10U) & 0x1FU, fraction = half & 0x3FFU;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return sign == 0 ? magnitude : -magnitude;
  }
  if (exponent == 0x1FU) return std::bit_cast<float>(sign | 0x7F800000U | fraction << 13U);
  return std::bit_cast<float>(sign | (exponent + 112U) << 23U | fraction << 13U);
}

// binary32 to IEEE binary16, to the nearest, halves to even.
inline uint16_t narrowed(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16U & 0x8000U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude >= 0x7F800000U) return sign | (magnitude > 0x7F800000U ? 0x7E00U : 0x7C00U);
  if (magnitude >= 0x477FF000U) return sign | 0x7C00U;  // beyond 65504 and a half step
  if (magnitude < 0x38800000U) {
    // Subnormal: whole multiples of 2^-24.
    const float steps = std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24F);
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(steps));
  }
  const uint32_t even = magnitude + 0xFFFU + (magnitude >> 13U & 1U);
  return static_cast<uint16_t>(sign | ((even - 0x38000000U) >> 13U));
}

}  // namespace mcompress
