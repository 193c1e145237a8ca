#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace mcompress {

// a + b and a * b, or nothing where they overflow: the only arithmetic done on numbers read from
// a file.
inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

inline std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

// Number of elements of `shape`, or nothing where a dimension is negative or the product
// overflows. An empty shape is a scalar: 1.
inline std::optional<uint64_t> count_elements(std::span<const int64_t> shape) {
  uint64_t count = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    const auto product = checked_mul(count, static_cast<uint64_t>(dimension));
    if (!product) return std::nullopt;
    count = *product;
  }
  return count;
}

// True where [offset, offset + size) lies inside a file of `total` bytes.
inline bool fits(uint64_t offset, uint64_t size, uint64_t total) {
  return offset <= total && size <= total - offset;
}

}  // namespace mcompress
