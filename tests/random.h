#pragma once

#include <cstddef>
#include <cstdint>

namespace mcompress::testing {

// The same numbers for a seed on every machine.
class Random {
 public:
  explicit Random(uint32_t seed) : state_(seed) {}
  size_t below(size_t limit) {
    state_ = state_ * 1664525U + 1013904223U;
    return (state_ >> 8U) % limit;
  }

 private:
  uint32_t state_;
};

}  // namespace mcompress::testing
