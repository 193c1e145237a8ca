#include "mcompress/data/dataset.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/zip.h"
#include "test_files.h"

namespace mcompress {
namespace {

using namespace std::string_literals;
using testing::TemporaryFolder;
using testing::write_file;

std::string npy(const std::string& dtype, const std::string& shape, const std::string& data) {
  const std::string header = "{'descr': '" + dtype + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
  return "\x93NUMPY\x01\x00"s + static_cast<char>(header.size()) + '\0' + header + data;
}

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// Two samples of three floats, and their labels.
const std::string kInputs = npy("<f4", "(2, 3)", raw<float>({1, 2, 3, 4, 5, 6}));
const std::string kLabels = npy("<i8", "(2,)", raw<int64_t>({1, 0}));

void expect_samples(const Dataset& data) {
  ASSERT_EQ(data.size(), 2);
  EXPECT_EQ(data.batch(1, 2)[0][2].item<float>(), 6);
  EXPECT_EQ(data.labels[0].item<int64_t>(), 1);
}

TEST(Dataset, ReadsNpyPairInAnyOrder) {
  const TemporaryFolder folder;
  write_file(folder / "x.npy", kInputs);
  write_file(folder / "y.npy", kLabels);
  expect_samples(load_dataset((folder / "x.npy") + "," + (folder / "y.npy"), {}));
  expect_samples(load_dataset((folder / "y.npy") + "," + (folder / "x.npy"), {}));
}

TEST(Dataset, ReadsNpz) {
  const TemporaryFolder folder;
  {
    OutputFile file(folder / "d", false);
    ZipWriter writer(file);
    writer.add("x.npy", std::as_bytes(std::span(kInputs)), false);
    writer.add("y.npy", std::as_bytes(std::span(kLabels)), true);
    writer.finish();
    file.commit();
  }
  expect_samples(load_dataset(folder / "d", {}));
}

TEST(Dataset, ReadsTwoTensorsOfSafetensors) {
  const TemporaryFolder folder;
  {
    OutputFile file(folder / "d", false);
    const SafetensorsWriter writer({{"x", DType::kF32, {2, 3}}, {"y", DType::kI64, {2}}}, {});
    writer.write_header(file);
    const std::vector<float> x{1, 2, 3, 4, 5, 6};
    const std::vector<int64_t> y{1, 0};
    writer.write(file, "x", 0, std::as_bytes(std::span(x)));
    writer.write(file, "y", 0, std::as_bytes(std::span(y)));
    file.commit();
  }
  expect_samples(load_dataset(folder / "d", {}));
}

TEST(Dataset, ReadsIdxByItsImagesAndScalesBytes) {
  const TemporaryFolder folder;
  write_file(folder / "t10k-images-idx3-ubyte",
             "\0\0\x08\x03\0\0\0\x02\0\0\0\x01\0\0\0\x02\x00\xff\x33\x00"s);
  write_file(folder / "t10k-labels-idx1-ubyte", "\0\0\x08\x01\0\0\0\x02\x07\x03"s);
  for (const std::string& path : {folder / "t10k-images-idx3-ubyte", folder.path()}) {
    const Dataset data = load_dataset(path, {});
    EXPECT_EQ(data.batch(0, 2).sizes(), (std::vector<int64_t>{2, 1, 1, 2}));
    EXPECT_EQ(data.batch(0, 1).flatten()[1].item<float>(), 1.0F);
    EXPECT_EQ(data.labels[1].item<int64_t>(), 3);
  }
}

TEST(Dataset, ReadsCifarPlanesAndNormalizesByChannel) {
  const TemporaryFolder folder;
  const std::string row =
      "\x05" + std::string(1024, '\x00') + std::string(1024, '\x33') + std::string(1024, '\xff');
  write_file(folder / "d", row + row);
  DataOptions options;
  options.mean = {0, 0.2, 0.5};
  options.stddev = {1, 1, 0.5};
  options.limit = 1;
  const Dataset data = load_dataset(folder / "d", options);
  ASSERT_EQ(data.size(), 1);
  const at::Tensor pixel = data.batch(0, 1).select(3, 0).select(2, 0)[0];
  EXPECT_NEAR(pixel[0].item<float>(), 0, 1e-6);
  EXPECT_NEAR(pixel[1].item<float>(), 0, 1e-6);
  EXPECT_NEAR(pixel[2].item<float>(), 1, 1e-6);
}

TEST(Dataset, TurnsChannelsLastIntoChannelsFirst) {
  const TemporaryFolder folder;
  write_file(folder / "x.npy", npy("<f4", "(1, 1, 2, 3)", raw<float>({1, 2, 3, 4, 5, 6})));
  write_file(folder / "y.npy", npy("<i4", "(1,)", raw<int32_t>({0})));
  DataOptions options;
  options.layout = "nhwc";
  const at::Tensor x = load_dataset((folder / "x.npy") + "," + (folder / "y.npy"), options).batch(0, 1);
  EXPECT_EQ(x.sizes(), (std::vector<int64_t>{1, 3, 1, 2}));
  EXPECT_EQ(x[0][2][0][1].item<float>(), 6);
}

TEST(Dataset, RefusesWhatDoesNotBelongTogether) {
  const TemporaryFolder folder;
  write_file(folder / "x.npy", kInputs);
  write_file(folder / "y.npy", kLabels);
  write_file(folder / "three.npy", npy("<i8", "(3,)", raw<int64_t>({1, 0, 1})));
  write_file(folder / "none.npy", npy("<i8", "(0,)", ""));
  write_file(folder / "empty.npy", npy("<f4", "(0, 3)", ""));
  const auto message = [&](const std::string& first, const std::string& second) -> std::string {
    try {
      load_dataset((folder / first) + "," + (folder / second), {});
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData);
      return failure.what();
    }
    return "accepted";
  };
  EXPECT_NE(message("x.npy", "three.npy").find("2 inputs, 3 labels"), std::string::npos);
  EXPECT_NE(message("x.npy", "x.npy").find("has no labels"), std::string::npos);
  EXPECT_NE(message("empty.npy", "none.npy").find("holds no samples"), std::string::npos);
}

}  // namespace
}  // namespace mcompress
