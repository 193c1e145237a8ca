#pragma once

#include <cstdint>

namespace mcompress {

inline constexpr const char* kDenseKey = "mcompress.dense";  // the entry of the metadata
inline constexpr uint64_t kMaxGaps = uint64_t{32} << 20;     // bytes of a dense file that are no arrays
inline constexpr uint64_t kBits = 8;                         // weights in a byte of the mask

inline uint64_t mask_row_bytes(uint64_t columns) { return columns / kBits + (columns % kBits == 0 ? 0 : 1); }

}  // namespace mcompress
