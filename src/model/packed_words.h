#pragma once

#include <cstdint>

#include "mcompress/formats/packed_codes.h"

namespace mcompress {

// The words of 32 bits in which packed layers hold their codes.
constexpr int64_t kWord = 32;
inline int64_t words_for(int64_t count, int bits) {
  return static_cast<int64_t>(words_of(static_cast<size_t>(count), bits));
}

}  // namespace mcompress
