#include "mcompress/formats/packed_codes.h"

#include <vector>

#include <gtest/gtest.h>

namespace mcompress {
namespace {

std::vector<uint32_t> packed(const std::vector<uint8_t>& codes, size_t streams, int bits) {
  const size_t count = codes.size() / streams;
  std::vector<uint32_t> words(words_of(count, bits) * streams);
  pack_codes({codes.data(), streams, count, count, 1}, bits, 0, streams, words.data());
  return words;
}

// The words that GPTQ's own code gives (AutoGPTQ, qlinear_cuda_old.py).
TEST(PackedCodes, HaveTheBitsOfGptq) {
  std::vector<uint8_t> codes;
  for (uint8_t i = 0; i < 8; ++i) codes.push_back(i);
  EXPECT_EQ(packed(codes, 1, 4), std::vector<uint32_t>{0x76543210});
  EXPECT_EQ(packed({0, 1, 2, 3}, 1, 8), std::vector<uint32_t>{0x03020100});
  codes.clear();
  for (uint8_t i = 0; i < 16; ++i) codes.push_back(i % 4);
  EXPECT_EQ(packed(codes, 1, 2), std::vector<uint32_t>{0xE4E4E4E4});
  codes.clear();
  for (uint8_t i = 0; i < 32; ++i) codes.push_back(i % 8);
  EXPECT_EQ(packed(codes, 1, 3), (std::vector<uint32_t>{0x88FAC688, 0xC688FAC6, 0xFAC688FA}));
}

TEST(PackedCodes, LieUnderEachOtherByStream) {
  const std::vector<uint8_t> two = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0,   // first stream
                                    0, 0, 0, 0, 0, 0, 0, 1, 1, 0,  0,  0,  0,  0,  0,  0};  // second
  EXPECT_EQ(packed(two, 2, 4), (std::vector<uint32_t>{0x87654321, 0x10000000, 0x0FEDCBA9, 0x00000001}));
}

TEST(PackedCodes, ComeBackForEveryWidthAndCount) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (const size_t count : {size_t{1}, size_t{31}, size_t{32}, size_t{100}}) {
      std::vector<uint8_t> codes(3 * count);
      for (size_t i = 0; i < codes.size(); ++i)
        codes[i] = static_cast<uint8_t>((i * 37 + i / 7) % (1U << bits));
      const auto words = packed(codes, 3, bits);
      std::vector<uint8_t> back(codes.size());
      unpack_codes(words.data(), 3, count, bits, 0, 3, back.data());
      EXPECT_EQ(back, codes) << bits << " bits, " << count << " codes";
    }
  }
}

}  // namespace
}  // namespace mcompress
