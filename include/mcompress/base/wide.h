#pragma once

// A loop that is compiled for several widths of registers, of which the processor's own is taken when the
// program starts. Files with such loops are compiled without contraction of a * b + c, so that all give the
// same bytes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MCOMPRESS_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MCOMPRESS_WIDE
#endif

namespace mcompress {

// To the nearest whole number, halves to even; of numbers below 2^51 in magnitude. Unlike std::nearbyint it
// is two additions in any register.
inline double rounded(double x) {
  constexpr double kShift = 0x1.8p52;
  return (x + kShift) - kShift;
}

// The same of numbers below 2^22.
inline float rounded(float x) {
  constexpr float kShift = 0x1.8p23F;
  return (x + kShift) - kShift;
}

}  // namespace mcompress
