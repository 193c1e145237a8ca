#pragma once

#include <cstddef>
#include <cstdint>

namespace mcompress {

// Codes of 1 to 8 bits as a little-endian stream of bits in words of 32: code i takes the bits from i * bits
// on, as GPTQ's checkpoints have them (2, 3, 4 and 8 bits).
//
// A matrix of codes [streams, count] becomes words [words_of(count, bits), streams]: each row is a stream,
// and its words lie under each other.
inline size_t words_of(size_t count, int bits) { return (count * static_cast<size_t>(bits) + 31) / 32; }

// `codes`: row i begins at codes[i * row_stride], and its elements are element_stride apart. Bits beyond
// those of a code are cut off. Rows [begin, end) only; `words` are those of all streams and set, not added
// to.
struct CodeMatrix {
  const uint8_t* codes;
  size_t streams, count, row_stride, element_stride;
};
void pack_codes(const CodeMatrix& matrix, int bits, size_t begin, size_t end, uint32_t* words);

// The opposite, into codes [streams, count] that lie one after the other.
void unpack_codes(const uint32_t* words, size_t streams, size_t count, int bits, size_t begin, size_t end,
                  uint8_t* codes);

}  // namespace mcompress
