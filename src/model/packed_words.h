#pragma once

#include <cstdint>
#include <string>

#include "mcompress/formats/packed_codes.h"
#include "mcompress/model/packed_layer.h"

namespace mcompress {

// The words of 32 bits in which packed layers hold their codes.
constexpr int64_t kWord = 32;
inline int64_t words_for(int64_t count, int bits) {
  return static_cast<int64_t>(words_of(static_cast<size_t>(count), bits));
}

// The bits of so many codes of compressed-tensors in so many words; 0 where there are none.
int packed_width(int64_t words, int64_t codes);

}  // namespace mcompress
