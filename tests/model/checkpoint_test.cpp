#include "mcompress/model/checkpoint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "mcompress/methods/grid.h"
#include "test_files.h"

namespace mcompress {
namespace {

Bytes bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

struct Source {
  at::Tensor weight, bias;
  CheckpointFiles checkpoint;
};

// A matrix of several pieces and a vector, as arrays without a file.
Source make_source() {
  at::manual_seed(3);
  Source source{at::randn({5000, 384}), at::randn({7}), {}};
  source.checkpoint.arrays = {{"fc.weight", DType::kF32, {5000, 384}, {}, bytes_of(source.weight)},
                              {"fc.bias", DType::kF32, {7}, {}, bytes_of(source.bias)}};
  return source;
}

IntChannel by_rows(const at::Tensor& rows) { return quantize_rows(rows, RowGrid{}); }

TEST(WriteCompressed, PiecesGiveWhatTheWholeGives) {
  const testing::TemporaryFolder folder;
  Source source = make_source();
  testing::write_file(folder / "source", "x");
  source.checkpoint.files = {std::make_shared<const MappedFile>(folder / "source")};
  source.checkpoint.file_of = {0, 0};
  OutputFile file(folder / "out", false);
  const StoragePlan plan{StoredType::kInt8Rows, {true, false}, {}, {}};
  write_compressed(source.checkpoint, 0, plan, by_rows, file);
  EXPECT_EQ(file.size() + source.weight.numel() + 5000 * 4 + 7 * 4,
            predict_compressed_bytes(source.checkpoint, plan));
  file.commit();

  const CheckpointFiles written = read_checkpoint(folder / "out", ModelFormat::kSafetensors);
  ASSERT_EQ(written.arrays.size(), 3U);
  const IntChannel whole = by_rows(source.weight);
  for (const Array& array : written.arrays) {
    const at::Tensor tensor = rows_of(array, 0, array.shape[0]);
    if (array.name == "fc.weight") {
      EXPECT_TRUE(at::equal(tensor, whole.codes));
    }
    if (array.name == "fc.weight_scale") {
      EXPECT_TRUE(at::equal(tensor.squeeze(1), whole.scale));
    }
    if (array.name == "fc.bias") {
      EXPECT_TRUE(at::equal(tensor, source.bias));
    }
  }
}

TEST(GuessKind, TellsEmbeddingsByTheirOwnModuleOnly) {
  LayerKind kind{};
  const auto guess = [&](const std::string& name, std::vector<int64_t> shape) {
    return guess_kind({name, DType::kF32, std::move(shape), {}, {}}, kind);
  };
  EXPECT_TRUE(guess("bert.embeddings.word_embeddings.weight", {8, 4}));
  EXPECT_EQ(kind, LayerKind::kEmbedding);
  EXPECT_TRUE(guess("embeddings.projection.weight", {8, 4}));
  EXPECT_EQ(kind, LayerKind::kLinear);
  EXPECT_TRUE(guess("conv1.weight", {8, 4, 3, 3}));
  EXPECT_EQ(kind, LayerKind::kConv2d);
  EXPECT_FALSE(guess("norm.weight", {8}));
  EXPECT_FALSE(guess("fc.bias", {8}));
}

}  // namespace
}  // namespace mcompress
