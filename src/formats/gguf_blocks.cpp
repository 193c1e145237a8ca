#include <array>
#include <bit>
#include <cstring>

#include "half.h"
#include "mcompress/formats/gguf.h"

namespace mcompress {

namespace {

// Reads the fields of one block in their order.
class Fields {
 public:
  explicit Fields(const std::byte* block) : at_(reinterpret_cast<const uint8_t*>(block)) {}

  float half() {
    const auto bits = static_cast<uint16_t>(at_[0] | at_[1] << 8);
    at_ += 2;
    return widened(bits);
  }
  const uint8_t* bytes(size_t count) {
    const uint8_t* begin = at_;
    at_ += count;
    return begin;
  }
  uint32_t word() {
    uint32_t value = 0;
    std::memcpy(&value, bytes(4), 4);
    return value;
  }

 private:
  const uint8_t* at_;
};

constexpr int kBlock = 32, kSuper = 256;

void q4_0(Fields block, float* y) {
  const float d = block.half();
  const uint8_t* q = block.bytes(kBlock / 2);
  for (int j = 0; j < kBlock / 2; ++j) {
    y[j] = static_cast<float>((q[j] & 15) - 8) * d;
    y[j + kBlock / 2] = static_cast<float>((q[j] >> 4) - 8) * d;
  }
}

void q4_1(Fields block, float* y) {
  const float d = block.half(), m = block.half();
  const uint8_t* q = block.bytes(kBlock / 2);
  for (int j = 0; j < kBlock / 2; ++j) {
    y[j] = static_cast<float>(q[j] & 15) * d + m;
    y[j + kBlock / 2] = static_cast<float>(q[j] >> 4) * d + m;
  }
}

// The fifth bits of all 32 values lie in one word.
int fifth(uint32_t bits, int value) {
  return static_cast<int>((bits >> static_cast<unsigned>(value)) & 1U) << 4;
}

void q5_0(Fields block, float* y) {
  const float d = block.half();
  const uint32_t high = block.word();
  const uint8_t* q = block.bytes(kBlock / 2);
  for (int j = 0; j < kBlock / 2; ++j) {
    y[j] = static_cast<float>(((q[j] & 15) | fifth(high, j)) - 16) * d;
    y[j + kBlock / 2] = static_cast<float>(((q[j] >> 4) | fifth(high, j + kBlock / 2)) - 16) * d;
  }
}

void q5_1(Fields block, float* y) {
  const float d = block.half(), m = block.half();
  const uint32_t high = block.word();
  const uint8_t* q = block.bytes(kBlock / 2);
  for (int j = 0; j < kBlock / 2; ++j) {
    y[j] = static_cast<float>((q[j] & 15) | fifth(high, j)) * d + m;
    y[j + kBlock / 2] = static_cast<float>((q[j] >> 4) | fifth(high, j + kBlock / 2)) * d + m;
  }
}

void q8_0(Fields block, float* y) {
  const float d = block.half();
  const uint8_t* q = block.bytes(kBlock);
  for (int j = 0; j < kBlock; ++j) y[j] = static_cast<float>(static_cast<int8_t>(q[j])) * d;
}

// Scale and minimum of sub-block `j`, six bits each.
struct SubBlock {
  int scale, minimum;
};
SubBlock sub_block(const uint8_t* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4};
}

// Q5_K is Q4_K with a fifth bit of each value in 32 bytes of their own.
void q45_k(Fields block, bool five, float* y) {
  const float d = block.half(), dmin = block.half();
  const uint8_t* packed = block.bytes(12);
  const uint8_t* high = five ? block.bytes(kBlock) : nullptr;
  const uint8_t* q = block.bytes(kSuper / 2);
  for (int i = 0; i < kSuper; ++i) {
    const int j = i / kBlock, byte = kBlock * (i / 64) + i % kBlock;
    const SubBlock sub = sub_block(packed, j);
    int code = i % 64 < kBlock ? q[byte] & 15 : q[byte] >> 4;
    if (five) code |= (high[i % kBlock] >> j & 1) << 4;
    y[i] =
        d * static_cast<float>(sub.scale) * static_cast<float>(code) - dmin * static_cast<float>(sub.minimum);
  }
}

void q6_k(Fields block, float* y) {
  const uint8_t* low = block.bytes(kSuper / 2);
  const uint8_t* high = block.bytes(kSuper / 4);
  const uint8_t* scales = block.bytes(kSuper / 16);
  const float d = block.half();
  for (int i = 0; i < kSuper; ++i) {
    const int half = i / 128, k = i % 128 / 32, l = i % 32;
    const uint8_t byte = low[64 * half + 32 * (k & 1) + l];
    const int code = ((k < 2 ? byte & 15 : byte >> 4) | (high[32 * half + l] >> (2 * k) & 3) << 4) - 32;
    y[i] = d * static_cast<float>(static_cast<int8_t>(scales[i / 16])) * static_cast<float>(code);
  }
}

}  // namespace

void dequantize_gguf(GgufType type, Bytes blocks, float* values) {
  const GgufBlock size = block_of(type);
  for (size_t at = 0; at + size.bytes <= blocks.size(); at += size.bytes, values += size.values) {
    Fields block(blocks.data() + at);
    switch (type) {
      case GgufType::kF32: *values = std::bit_cast<float>(block.word()); break;
      case GgufType::kF16: *values = block.half(); break;
      case GgufType::kBF16: {
        const uint8_t* bits = block.bytes(2);
        *values = std::bit_cast<float>(static_cast<uint32_t>(bits[0] | bits[1] << 8) << 16U);
        break;
      }
      case GgufType::kQ4_0: q4_0(block, values); break;
      case GgufType::kQ4_1: q4_1(block, values); break;
      case GgufType::kQ5_0: q5_0(block, values); break;
      case GgufType::kQ5_1: q5_1(block, values); break;
      case GgufType::kQ8_0: q8_0(block, values); break;
      case GgufType::kQ4_K: q45_k(block, false, values); break;
      case GgufType::kQ5_K: q45_k(block, true, values); break;
      case GgufType::kQ6_K: q6_k(block, values); break;
    }
  }
}

}  // namespace mcompress
