#include "mcompress/formats/packed_codes.h"

namespace mcompress {

void pack_codes(const CodeMatrix& matrix, int bits, size_t begin, size_t end, uint32_t* words) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (size_t stream = begin; stream < end; ++stream) {
    uint64_t pending = 0;  // bits that fill no word yet
    int held = 0;
    size_t word = 0;
    for (size_t i = 0; i < matrix.count; ++i) {
      const uint8_t code = matrix.codes[stream * matrix.row_stride + i * matrix.element_stride];
      pending |= (code & mask) << held;
      held += bits;
      if (held < 32) continue;
      words[word++ * matrix.streams + stream] = static_cast<uint32_t>(pending);
      pending >>= 32;
      held -= 32;
    }
    if (held > 0) words[word * matrix.streams + stream] = static_cast<uint32_t>(pending);
  }
}

void unpack_codes(const uint32_t* words, size_t streams, size_t count, int bits, size_t begin, size_t end,
                  uint8_t* codes) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (size_t stream = begin; stream < end; ++stream) {
    uint64_t pending = 0;
    int held = 0;
    size_t word = 0;
    for (size_t i = 0; i < count; ++i) {
      if (held < bits) {
        pending |= uint64_t{words[word++ * streams + stream]} << held;
        held += 32;
      }
      codes[stream * count + i] = static_cast<uint8_t>(pending & mask);
      pending >>= bits;
      held -= bits;
    }
  }
}

}  // namespace mcompress
