#include "mcompress/formats/gguf_write.h"

#include <cmath>
#include <cstring>

#include <gtest/gtest.h>

#include "test_files.h"

namespace mcompress {
namespace {

// About normally distributed, the same everywhere.
std::vector<float> random_values(size_t count) {
  std::vector<float> values(count);
  uint64_t state = 7;
  const auto uniform = [&] {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return static_cast<float>(state >> 40U) / static_cast<float>(1U << 24U);
  };
  for (float& value : values) value = uniform() + uniform() + uniform() + uniform() - 2;
  return values;
}

std::vector<float> there_and_back(GgufType type, const std::vector<float>& values) {
  const GgufBlock block = block_of(type);
  std::vector<std::byte> blocks(values.size() / static_cast<size_t>(block.values) * block.bytes);
  quantize_gguf(type, values.data(), static_cast<int64_t>(values.size()), blocks.data());
  std::vector<float> back(values.size());
  dequantize_gguf(type, blocks, back.data());
  return back;
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double off = 0, all = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    off += std::pow(a[i] - b[i], 2);
    all += std::pow(a[i], 2);
  }
  return std::sqrt(off / all);
}

// Bounds of uniform rounding: a step of 1 / codes of the range, and no more than the type beside it.
TEST(GgufWrite, LosesWhatTheTypeLoses) {
  const std::vector<float> values = random_values(64 * 256);
  std::map<GgufType, double> error;
  for (const GgufType type : {GgufType::kF32, GgufType::kF16, GgufType::kBF16, GgufType::kQ8_0,
                              GgufType::kQ6_K, GgufType::kQ4_K, GgufType::kQ4_1, GgufType::kQ4_0}) {
    EXPECT_TRUE(is_written(type));
    error[type] = relative_error(values, there_and_back(type, values));
  }
  EXPECT_EQ(error[GgufType::kF32], 0);
  EXPECT_LT(error[GgufType::kF16], 0x1p-11);
  EXPECT_LT(error[GgufType::kBF16], 0x1p-8);
  EXPECT_LT(error[GgufType::kQ8_0], 0.008);
  EXPECT_LT(error[GgufType::kQ6_K], 0.03);
  EXPECT_LT(error[GgufType::kQ4_K], 0.09);
  EXPECT_LT(error[GgufType::kQ4_1], 0.09);
  EXPECT_LT(error[GgufType::kQ4_0], 0.11);
  EXPECT_LT(error[GgufType::kQ4_K], error[GgufType::kQ4_0]);
  EXPECT_FALSE(is_written(GgufType::kQ5_K));
}

TEST(GgufWrite, KeepsWhatIsOnTheGrid) {
  // Rounded once, values stay where they are but for those of searches over scales.
  const std::vector<float> values = random_values(8 * 256);
  for (const GgufType type : {GgufType::kF16, GgufType::kBF16, GgufType::kQ8_0, GgufType::kQ4_0}) {
    const std::vector<float> once = there_and_back(type, values);
    EXPECT_LT(relative_error(once, there_and_back(type, once)), 1e-3) << name_of(type);
  }
  for (const GgufType type :
       {GgufType::kQ4_0, GgufType::kQ4_1, GgufType::kQ8_0, GgufType::kQ4_K, GgufType::kQ6_K}) {
    const std::vector<float> zeros(256, 0.0F);
    EXPECT_EQ(there_and_back(type, zeros), zeros) << name_of(type);
    const std::vector<float> same(256, 0.5F);
    EXPECT_LT(relative_error(same, there_and_back(type, same)), 0.01) << name_of(type);
  }
}

TEST(GgufWrite, NarrowsEveryHalfToItself) {
  std::vector<std::byte> halves(2 * 65536);
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto half = static_cast<uint16_t>(i);
    std::memcpy(halves.data() + 2 * i, &half, sizeof(half));
  }
  std::vector<float> values(65536);
  dequantize_gguf(GgufType::kF16, halves, values.data());
  std::vector<std::byte> back(halves.size());
  quantize_gguf(GgufType::kF16, values.data(), 65536, back.data());
  for (size_t i = 0; i < 65536; ++i) {
    if (std::isnan(values[i])) continue;
    ASSERT_EQ(std::memcmp(halves.data() + 2 * i, back.data() + 2 * i, 2), 0) << i;
  }
}

// Worked by hand: the largest magnitude -8 gets code 0, and others their distance from it.
TEST(GgufWrite, HasTheNibblesOfQ4_0) {
  std::vector<float> values(32, 0.0F);
  values[0] = -8;
  values[1] = 7;
  values[16] = 3;
  std::vector<std::byte> block(18);
  quantize_gguf(GgufType::kQ4_0, values.data(), 32, block.data());
  EXPECT_EQ(block[0], std::byte{0x00});  // a scale of 1
  EXPECT_EQ(block[1], std::byte{0x3C});
  EXPECT_EQ(block[2], std::byte{0xB0});  // codes 0, and 3 + 8 of value 16
  EXPECT_EQ(block[3], std::byte{0x8F});
}

TEST(GgufWrite, WritesFilesThatAreRead) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "model.gguf";
  const std::vector<float> values = random_values(3 * 64);
  const GgufWriter writer({{"general.architecture", std::string("llama")},
                           {"llama.block_count", uint32_t{2}},
                           {"llama.epsilon", 0.5F},
                           {"a.flag", true},
                           {"a.list", std::vector<std::string>{"one", "", "three"}},
                           {"a.numbers", std::vector<int32_t>{1, -2}}},
                          {{"first", GgufType::kF32, {3}}, {"second", GgufType::kQ8_0, {3, 64}}});
  {
    OutputFile file(path, false);
    writer.write_header(file);
    std::vector<std::byte> blocks(3 * 2 * 34);
    quantize_gguf(GgufType::kQ8_0, values.data(), 3 * 64, blocks.data());
    writer.write(file, 1, 0, blocks);
    writer.write(file, 0, 0, std::as_bytes(std::span(values.data(), 3)));
    file.commit();
  }
  const std::string content = testing::read_file(path);
  EXPECT_EQ(content.size(), writer.file_bytes());
  const GgufFile file = read_gguf(std::as_bytes(std::span(content)), path);
  EXPECT_EQ(*find_value<std::string>(file, "general.architecture"), "llama");
  EXPECT_EQ(*find_value<int64_t>(file, "llama.block_count"), 2);
  EXPECT_EQ(*find_value<double>(file, "llama.epsilon"), 0.5);
  EXPECT_EQ(*find_value<int64_t>(file, "a.flag"), 1);
  EXPECT_EQ(*find_value<std::vector<std::string>>(file, "a.list"),
            (std::vector<std::string>{"one", "", "three"}));
  EXPECT_EQ(*find_value<std::vector<int64_t>>(file, "a.numbers"), (std::vector<int64_t>{1, -2}));
  ASSERT_EQ(file.tensors.size(), 2U);
  EXPECT_EQ(file.tensors[1].shape, (std::vector<int64_t>{3, 64}));
  std::vector<float> back(3 * 64);
  dequantize_gguf(GgufType::kQ8_0, file.tensors[1].bytes, back.data());
  EXPECT_LT(relative_error(values, back), 0.008);
}

}  // namespace
}  // namespace mcompress
