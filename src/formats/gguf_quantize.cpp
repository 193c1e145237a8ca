#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "half.h"
#include "mcompress/formats/gguf_write.h"

namespace mcompress {

namespace {

constexpr int kBlock = 32, kSuper = 256;

// Writes the fields of a block one after the other.
class Fields {
 public:
  explicit Fields(std::byte* at) : at_(reinterpret_cast<uint8_t*>(at)) {}

  // Returns what is read back of it.
  float half(float value) {
    const uint16_t bits = narrowed(value);
    *at_++ = static_cast<uint8_t>(bits & 255U);
    *at_++ = static_cast<uint8_t>(bits >> 8U);
    return widened(bits);
  }
  uint8_t* bytes(size_t count) {
    uint8_t* begin = at_;
    std::memset(begin, 0, count);
    at_ += count;
    return begin;
  }

 private:
  uint8_t* at_;
};

// 0 of what has no finite one.
float inverse(float d) { return std::abs(d) < FLT_MIN ? 0 : 1 / d; }

void q4_0(const float* x, float d, Fields block) {
  const float id = inverse(d);
  block.half(d);
  uint8_t* q = block.bytes(kBlock / 2);
  const auto code = [&](float value) {
    return static_cast<uint8_t>(std::min(15, static_cast<int>(value * id + 8.5F)));
  };
  for (int j = 0; j < kBlock / 2; ++j) q[j] = code(x[j]) | code(x[j + kBlock / 2]) << 4;
}

void q4_1(const float* x, Fields block) {
  const auto [low, high] = std::minmax_element(x, x + kBlock);
  const float d = (*high - *low) / 15, id = inverse(d), least = *low;
  block.half(d);
  block.half(least);
  uint8_t* q = block.bytes(kBlock / 2);
  const auto code = [&](float value) {
    return static_cast<uint8_t>(std::min(15, static_cast<int>((value - least) * id + 0.5F)));
  };
  for (int j = 0; j < kBlock / 2; ++j) q[j] = code(x[j]) | code(x[j + kBlock / 2]) << 4;
}

// The value of a block that is farthest from 0.
float extreme_of(const float* x) {
  return *std::max_element(x, x + kBlock, [](float a, float b) { return std::abs(a) < std::abs(b); });
}

void q8_0(const float* x, float d, Fields block) {
  const float id = inverse(d);
  block.half(d);
  uint8_t* q = block.bytes(kBlock);
  for (int j = 0; j < kBlock; ++j) q[j] = static_cast<uint8_t>(static_cast<int8_t>(std::round(x[j] * id)));
}

int nearest(float value, int low, int high) {
  return std::clamp(static_cast<int>(std::nearbyint(value)), low, high);
}

// The scale and the minimum, both from 0 up, with which codes of 0 to 15 tell the values best, by weighted
// least squares from 21 starts.
struct ScaleMin {
  float scale = 0, minimum = 0;
};
ScaleMin scale_min_of(const float* x, const std::array<float, kBlock>& weights) {
  constexpr int kMost = 15, kSteps = 20;
  const auto [lowest, highest] = std::minmax_element(x, x + kBlock);
  const float low = std::min(0.0F, *lowest), range = *highest - low;
  if (range < FLT_MIN) return {0, -low};
  float sum_w = 0, sum_x = 0;
  for (int i = 0; i < kBlock; ++i) {
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
  }
  const auto error_of = [&](float scale, float offset, const std::array<int, kBlock>& codes) {
    float error = 0;
    for (int i = 0; i < kBlock; ++i) {
      const float off = scale * static_cast<float>(codes[i]) + offset - x[i];
      error += weights[i] * off * off;
    }
    return error;
  };
  std::array<int, kBlock> codes{};
  float scale = range / kMost, offset = low;
  for (int i = 0; i < kBlock; ++i) codes[i] = nearest((x[i] - low) / scale, 0, kMost);
  float best = error_of(scale, offset, codes);
  for (int step = 0; step <= kSteps; ++step) {
    const float inverse_scale = (-1 + 0.1F * static_cast<float>(step) + kMost) / range;
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (int i = 0; i < kBlock; ++i) {
      codes[i] = nearest(inverse_scale * (x[i] - low), 0, kMost);
      const auto code = static_cast<float>(codes[i]);
      sum_l += weights[i] * code;
      sum_l2 += weights[i] * code * code;
      sum_xl += weights[i] * code * x[i];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0)) continue;
    float trial = (sum_w * sum_xl - sum_x * sum_l) / determinant,
          at = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (at > 0) {
      at = 0;
      trial = sum_xl / sum_l2;
    }
    if (const float error = error_of(trial, at, codes); error < best) {
      best = error;
      scale = trial;
      offset = at;
    }
  }
  return {scale, -offset};
}

void q4_k(const float* x, Fields block) {
  constexpr int kSubs = kSuper / kBlock;
  std::array<ScaleMin, kSubs> subs;
  float most_scale = 0, most_minimum = 0;
  for (int j = 0; j < kSubs; ++j) {
    const float* values = x + j * kBlock;
    float squares = 0;
    for (int i = 0; i < kBlock; ++i) squares += values[i] * values[i];
    std::array<float, kBlock> weights{};
    for (int i = 0; i < kBlock; ++i) weights[i] = std::sqrt(squares / kBlock) + std::abs(values[i]);
    subs[j] = scale_min_of(values, weights);
    most_scale = std::max(most_scale, subs[j].scale);
    most_minimum = std::max(most_minimum, subs[j].minimum);
  }
  const float d = block.half(most_scale / 63), dmin = block.half(most_minimum / 63);
  uint8_t* packed = block.bytes(12);
  std::array<int, kSubs> scales{}, minima{};
  for (int j = 0; j < kSubs; ++j) {
    scales[j] = nearest(63 * inverse(most_scale) * subs[j].scale, 0, 63);
    minima[j] = nearest(63 * inverse(most_minimum) * subs[j].minimum, 0, 63);
    if (j < 4) {
      packed[j] = static_cast<uint8_t>(scales[j]);
      packed[j + 4] = static_cast<uint8_t>(minima[j]);
    } else {
      packed[j + 4] = static_cast<uint8_t>((scales[j] & 15) | (minima[j] & 15) << 4);
      packed[j - 4] |= static_cast<uint8_t>((scales[j] >> 4) << 6);
      packed[j] |= static_cast<uint8_t>((minima[j] >> 4) << 6);
    }
  }
  uint8_t* q = block.bytes(kSuper / 2);
  for (int i = 0; i < kSuper; ++i) {
    const int j = i / kBlock;
    const float step = d * static_cast<float>(scales[j]);
    const int code =
        std::abs(step) < FLT_MIN ? 0 : nearest((x[i] + dmin * static_cast<float>(minima[j])) / step, 0, 15);
    q[kBlock * (i / 64) + i % kBlock] |= static_cast<uint8_t>(i % 64 < kBlock ? code : code << 4);
  }
}

// The scale with which codes of -32 to 31 tell 16 values best, weighted by their squares.
float scale_of(const float* x) {
  constexpr int kCount = 16;
  const float extreme =
      *std::max_element(x, x + kCount, [](float a, float b) { return std::abs(a) < std::abs(b); });
  if (std::abs(extreme) < FLT_MIN) return 0;
  float best = 0, scale = 0;
  for (int step = -9; step <= 9; ++step) {
    const float inverse_scale = -(32 + 0.1F * static_cast<float>(step)) / extreme;
    float sum_xl = 0, sum_l2 = 0;
    for (int i = 0; i < kCount; ++i) {
      const auto code = static_cast<float>(nearest(x[i] * inverse_scale, -32, 31));
      const float weight = x[i] * x[i];
      sum_xl += weight * code * x[i];
      sum_l2 += weight * code * code;
    }
    if (sum_l2 > 0 && sum_xl * sum_xl > best * sum_l2) {
      best = sum_xl * sum_xl / sum_l2;
      scale = sum_xl / sum_l2;
    }
  }
  return scale;
}

void q6_k(const float* x, Fields block) {
  constexpr int kCount = 16, kSubs = kSuper / kCount;
  std::array<float, kSubs> scales{};
  float extreme = 0;
  for (int j = 0; j < kSubs; ++j) {
    scales[j] = scale_of(x + j * kCount);
    if (std::abs(scales[j]) > std::abs(extreme)) extreme = scales[j];
  }
  uint8_t* low = block.bytes(kSuper / 2);
  uint8_t* high = block.bytes(kSuper / 4);
  uint8_t* stored = block.bytes(kSubs);
  const float d = block.half(extreme == 0 ? 0 : extreme / -128);
  for (int j = 0; j < kSubs; ++j)
    stored[j] =
        static_cast<uint8_t>(static_cast<int8_t>(nearest(scales[j] * -128 * inverse(extreme), -128, 127)));
  for (int i = 0; i < kSuper; ++i) {
    const float step = d * static_cast<float>(static_cast<int8_t>(stored[i / kCount]));
    if (step == 0 && extreme == 0) continue;
    const int code = (std::abs(step) < FLT_MIN ? 0 : nearest(x[i] / step, -32, 31)) + 32;
    const int half = i / 128, k = i % 128 / 32, l = i % 32;
    low[64 * half + 32 * (k & 1) + l] |= static_cast<uint8_t>(k < 2 ? code & 15 : (code & 15) << 4);
    high[32 * half + l] |= static_cast<uint8_t>((code >> 4) << (2 * k));
  }
}

}  // namespace

bool is_written(GgufType type) {
  switch (type) {
    case GgufType::kQ5_0:
    case GgufType::kQ5_1:
    case GgufType::kQ5_K: return false;
    default: return true;
  }
}

void quantize_gguf(GgufType type, const float* values, int64_t count, std::byte* blocks,
                   const float* scales) {
  const GgufBlock size = block_of(type);
  for (int64_t at = 0; at + size.values <= count; at += size.values, blocks += size.bytes) {
    const float* x = values + at;
    Fields block(blocks);
    switch (type) {
      case GgufType::kF32: std::memcpy(blocks, x, sizeof(*x)); break;
      case GgufType::kF16: block.half(*x); break;
      case GgufType::kBF16: {
        const auto bits = std::bit_cast<uint32_t>(*x);
        const uint32_t even = *x == *x ? (bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U : 0x7FC0U;
        uint8_t* bytes = block.bytes(2);
        bytes[0] = static_cast<uint8_t>(even & 255U);
        bytes[1] = static_cast<uint8_t>(even >> 8U);
        break;
      }
      case GgufType::kQ4_0: q4_0(x, scales != nullptr ? *scales++ : extreme_of(x) / -8, block); break;
      case GgufType::kQ4_1: q4_1(x, block); break;
      case GgufType::kQ8_0:
        q8_0(x, scales != nullptr ? *scales++ : std::abs(extreme_of(x)) / 127, block);
        break;
      case GgufType::kQ4_K: q4_k(x, block); break;
      case GgufType::kQ6_K: q6_k(x, block); break;
      default: break;
    }
  }
}

}  // namespace mcompress
