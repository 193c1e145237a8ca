#include "mcompress/model/packed_layer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"

namespace mcompress {
namespace {

// Codes i % 2^bits with the zero points that are given, groups of that size.
IntGroup weight_of(int64_t rows, int64_t channels, int bits, int64_t group_size, bool symmetric) {
  const int64_t size = group_size < 0 ? channels : group_size, groups = (channels + size - 1) / size;
  const int most = 1 << bits;
  const at::Tensor zero =
      symmetric ? at::full({rows, groups}, most / 2)
                : at::arange(rows * groups).mul_(5).remainder_(most).clamp_min_(1).view({rows, groups});
  return {bits, at::arange(rows * channels).mul_(7).remainder_(most).view({rows, channels}).to(at::kByte),
          at::arange(1, rows * groups + 1).view({rows, groups}).to(at::kHalf).mul_(0.0078125),
          zero.to(at::kByte), at::arange(channels).div(size, "floor")};
}

uint32_t word(const PackedTensors& tensors, const char* suffix, int64_t row, int64_t column) {
  return static_cast<uint32_t>(tensors.at(suffix)[row][column].item<int32_t>());
}

IntGroup eight(const std::vector<int64_t>& codes, bool by_rows, int64_t zero) {
  at::Tensor values = at::tensor(codes, at::kLong).to(at::kByte);
  values = by_rows ? values.view({-1, 1}) : values.view({1, -1});
  return {4, values, at::ones({values.size(0), 1}, at::kHalf), at::full({values.size(0), 1}, zero, at::kByte),
          at::zeros({values.size(1)}, at::kLong)};
}

// The words that each tool's own code gives for the same codes.
TEST(PackedLayer, HasTheBitsOfItsForm) {
  const std::vector<int64_t> up = {0, 1, 2, 3, 4, 5, 6, 7}, high = {8, 9, 10, 11, 12, 13, 14, 15};
  EXPECT_EQ(word(pack_layer(PackedForm::kGptq, true, eight(up, false, 8)), ".qweight", 0, 0), 0x76543210U);
  EXPECT_EQ(word(pack_layer(PackedForm::kGptq, true, eight(up, true, 8)), ".qzeros", 0, 0), 0x77777777U);
  EXPECT_EQ(word(pack_layer(PackedForm::kGptqV2, true, eight(up, true, 8)), ".qzeros", 0, 0), 0x88888888U);
  const PackedTensors awq = pack_layer(PackedForm::kAwq, true, eight(up, true, 8));
  EXPECT_EQ(word(awq, ".qweight", 0, 0), 0x75316420U);
  EXPECT_EQ(word(awq, ".qzeros", 0, 0), 0x88888888U);
  // Signed codes -8 to -1 and 0 to 7.
  const auto signed_word = [](const IntGroup& weight) {
    return word(pack_layer(PackedForm::kCompressedTensors, true, weight), ".weight_packed", 0, 0);
  };
  EXPECT_EQ(signed_word(eight(up, false, 8)), 0x76543210U);
  EXPECT_EQ(signed_word(eight(high, false, 8)), 0xFEDCBA98U);
  const PackedTensors zeros = pack_layer(PackedForm::kCompressedTensors, false, eight(up, true, 3));
  EXPECT_EQ(zeros.at(".weight_zero_point").sizes(), (std::vector<int64_t>{1, 1}));
  EXPECT_EQ(word(zeros, ".weight_zero_point", 0, 0), 0x33333333U);
  EXPECT_EQ(zeros.at(".weight_shape")[0].item<int64_t>(), 8);
  EXPECT_EQ(zeros.at(".weight_shape")[1].item<int64_t>(), 1);
  const PackedTensors plain = pack_layer(PackedForm::kPlainCodes, false, eight(up, true, 3));
  EXPECT_TRUE(plain.at(".weight").flatten().equal(at::arange(-8, 0).to(at::kChar)));
  EXPECT_TRUE(plain.at(".weight_zero_point").eq(-5).all().item<bool>());
}

// Codes that are the number of their channel, and as many rows with the middle as zero point.
IntGroup counted(int bits, int64_t rows, int64_t channels) {
  const int most = 1 << bits;
  return {bits, at::arange(channels).remainder(most).to(at::kByte).expand({rows, channels}).contiguous(),
          at::ones({rows, 1}, at::kHalf), at::full({rows, 1}, most / 2, at::kByte),
          at::zeros({channels}, at::kLong)};
}

TEST(PackedLayer, HasTheWordsOfEachWidth) {
  struct Width {
    int bits;
    std::vector<uint32_t> codes, zeros, zeros_less_one;
  };
  const std::vector<Width> widths = {{2, {0xE4E4E4E4U}, {0xAAAAAAAAU}, {0x55555555U}},
                                     {3,
                                      {0x88FAC688U, 0xC688FAC6U, 0xFAC688FAU},
                                      {0x24924924U, 0x49249249U, 0x92492492U},
                                      {0xDB6DB6DBU, 0xB6DB6DB6U, 0x6DB6DB6DU}},
                                     {4, {0x76543210U, 0xFEDCBA98U}, {0x88888888U}, {0x77777777U}},
                                     {8, {0x03020100U, 0x07060504U}, {0x80808080U}, {0x7F7F7F7FU}}};
  for (const Width& width : widths) {
    const IntGroup weight = counted(width.bits, 32, 32);
    const PackedTensors v1 = pack_layer(PackedForm::kGptq, true, weight),
                        v2 = pack_layer(PackedForm::kGptqV2, true, weight),
                        packed = pack_layer(PackedForm::kCompressedTensors, true, weight);
    const auto count = [](const auto& words) { return static_cast<int64_t>(words.size()); };
    for (int64_t i = 0; i < count(width.codes); ++i) {
      EXPECT_EQ(word(v1, ".qweight", i, 5), width.codes[static_cast<size_t>(i)]) << width.bits;
      EXPECT_EQ(word(packed, ".weight_packed", 5, i), width.codes[static_cast<size_t>(i)]) << width.bits;
    }
    for (int64_t i = 0; i < count(width.zeros); ++i) {
      EXPECT_EQ(word(v1, ".qzeros", 0, i), width.zeros_less_one[static_cast<size_t>(i)]) << width.bits;
      EXPECT_EQ(word(v2, ".qzeros", 0, i), width.zeros[static_cast<size_t>(i)]) << width.bits;
    }
  }
}

TEST(PackedLayer, HasZeroPointsInTheOrderOfItsForm) {
  IntGroup weight = eight({0, 1, 2, 3, 4, 5, 6, 7}, true, 8);
  weight.zero = at::arange(1, 9).to(at::kByte).unsqueeze(1);
  EXPECT_EQ(word(pack_layer(PackedForm::kGptq, false, weight), ".qzeros", 0, 0), 0x76543210U);
  EXPECT_EQ(word(pack_layer(PackedForm::kGptqV2, false, weight), ".qzeros", 0, 0), 0x87654321U);
  EXPECT_EQ(word(pack_layer(PackedForm::kAwq, false, weight), ".qzeros", 0, 0), 0x86427531U);
  EXPECT_EQ(word(pack_layer(PackedForm::kCompressedTensors, false, weight), ".weight_zero_point", 0, 0),
            0x87654321U);
}

// As compressed-tensors wrote it until 2026.
TEST(PackedLayer, ReadsGroupsThatAreNotOfNeighbours) {
  const IntGroup weight = weight_of(32, 64, 4, 32, false);
  PackedTensors tensors = pack_layer(PackedForm::kCompressedTensors, false, weight);
  const at::Tensor groups = at::arange(64).remainder(2);
  tensors[".weight_g_idx"] = groups.to(at::kInt);
  const IntGroup read = unpack_layer(PackedForm::kCompressedTensors, tensors, "fc");
  EXPECT_TRUE(read.groups.equal(groups) && read.codes.equal(weight.codes));
}

TEST(PackedLayer, KeepsScalesAsTheFileHasThem) {
  const IntGroup weight = weight_of(8, 32, 4, 16, true);
  for (const PackedForm form : {PackedForm::kCompressedTensors, PackedForm::kPlainCodes}) {
    PackedTensors tensors = pack_layer(form, true, weight);
    const auto read = [&](const at::Tensor& scales) {
      tensors[".weight_scale"] = scales;
      return unpack_layer(form, tensors, "fc").scale;
    };
    EXPECT_EQ(read(weight.scale.to(at::kBFloat16)).scalar_type(), at::kHalf);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const at::Tensor scales = (weight.scale.to(at::kFloat) * 1e-6).to(type);
      EXPECT_TRUE(read(scales).equal(scales.to(at::kFloat)));
    }
  }
}

TEST(PackedLayer, ComesBackInEveryFormAndShape) {
  int tried = 0;
  for (const PackedForm form : {PackedForm::kGptq, PackedForm::kGptqV2, PackedForm::kAwq,
                                PackedForm::kCompressedTensors, PackedForm::kPlainCodes}) {
    for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
      for (const auto& [rows, channels] : {std::pair<int64_t, int64_t>{32, 64}, {96, 64}, {64, 192}}) {
        for (const int64_t group_size : {32, 64, -1}) {
          for (const bool symmetric : {true, false}) {
            const PackedLayer layer{"layer", rows, channels, bits, group_size, symmetric};
            if (!packed_refusal(form, layer).empty()) continue;
            const IntGroup weight = weight_of(rows, channels, bits, group_size, symmetric);
            const PackedTensors tensors = pack_layer(form, symmetric, weight);
            const auto parts = packed_parts(form, layer);
            ASSERT_EQ(tensors.size(), parts.size());
            uint64_t bytes = 0;
            for (const PackedPart& part : parts) {
              EXPECT_EQ(tensors.at(part.suffix).sizes(), at::IntArrayRef(part.shape)) << part.suffix;
              bytes += tensors.at(part.suffix).nbytes();
            }
            EXPECT_EQ(bytes, packed_bytes(form, layer));
            EXPECT_EQ(packed_sizes(form, tensors, "layer"), (std::pair{rows, channels}));
            const IntGroup back = unpack_layer(form, tensors, "layer");
            ++tried;
            EXPECT_TRUE(dequantize_rows(back, 0, rows).equal(dequantize_rows(weight, 0, rows)));
            // Codes in bytes do not tell their bits.
            if (form == PackedForm::kPlainCodes) {
              EXPECT_EQ(back.bits, bits <= 4 ? 4 : 8);
              continue;
            }
            EXPECT_EQ(back.bits, bits);
            EXPECT_TRUE(back.codes.equal(weight.codes) && back.scale.equal(weight.scale) &&
                        back.zero.equal(weight.zero) && back.groups.equal(weight.groups))
                << name_of(form) << " " << bits << " bits, [" << rows << ", " << channels << "], groups of "
                << group_size;
          }
        }
      }
    }
  }
  EXPECT_EQ(tried, 2 * 4 * 18 + 18 + 2 * 7 * 18);
}

// Of few channels the words do not tell the bits.
TEST(PackedLayer, RefusesBitsThatCannotBeTold) {
  const auto refused = [](int64_t channels, int bits) {
    return !packed_refusal(PackedForm::kCompressedTensors, {"layer", 32, channels, bits, -1, true}).empty();
  };
  for (int bits = 2; bits <= 8; ++bits) EXPECT_FALSE(refused(32, bits)) << bits;
  EXPECT_FALSE(refused(4, 4));
  EXPECT_TRUE(refused(4, 8));
  EXPECT_TRUE(refused(16, 3));
  EXPECT_FALSE(refused(16, 8));
}

TEST(PackedLayer, RefusesTensorsThatDoNotFit) {
  const auto refused = [](PackedForm form, const PackedTensors& tensors) {
    try {
      unpack_layer(form, tensors, "fc1");
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData);
      return std::string(failure.what());
    }
    return std::string();
  };
  for (const PackedForm form :
       {PackedForm::kGptq, PackedForm::kAwq, PackedForm::kCompressedTensors, PackedForm::kPlainCodes}) {
    const PackedTensors whole = pack_layer(form, false, weight_of(32, 64, 4, 32, false));
    EXPECT_EQ(refused(form, whole), "");
    for (const auto& [suffix, tensor] : whole) {
      const std::string name = suffix.substr(1);
      const auto with = [&](const at::Tensor& other) {
        PackedTensors changed = whole;
        changed[suffix] = other;
        return refused(form, changed);
      };
      PackedTensors without = whole;
      without.erase(suffix);
      // A symmetric layer has no zero points.
      if (suffix != ".weight_zero_point") {
        EXPECT_NE(refused(form, without).find("'fc1" + suffix), std::string::npos);
      }
      EXPECT_NE(with(tensor.slice(0, 0, 1)), "") << name;
      EXPECT_NE(with(at::zeros({0}, tensor.options())), "") << name;
      EXPECT_NE(with(tensor.is_floating_point() ? tensor.to(at::kLong) : tensor.to(at::kFloat)), "") << name;
      if (tensor.is_floating_point()) {
        EXPECT_NE(with(at::full_like(tensor, NAN)).find("NaN"), std::string::npos);
      }
      if (suffix == ".g_idx") {
        EXPECT_NE(with(tensor + 9).find("outside the 2"), std::string::npos);
      }
      if (suffix == ".weight_shape") {
        EXPECT_NE(with(tensor * 1000), "");
      }
    }
  }
}

}  // namespace
}  // namespace mcompress
