// Checkpoints made by tests/data/make_state_dicts.py.
#include "mcompress/formats/state_dict.h"

#include <array>
#include <cstring>

#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"

namespace mcompress {
namespace {

std::string fixture(const std::string& name) {
  return std::string(MCOMPRESS_TESTS_DIR) + "/data/state_dicts/" + name;
}

const Array& find(const CheckpointFiles& checkpoint, const std::string& name) {
  for (const Array& array : checkpoint.arrays) {
    if (array.name == name) return array;
  }
  throw bad_data("no array '{}'", name);
}

// Element [row, column] of a float32 matrix.
float at(const Array& array, int64_t row, int64_t column) {
  const int64_t row_stride = array.strides.empty() ? array.shape[1] : array.strides[0];
  const int64_t column_stride = array.strides.empty() ? 1 : array.strides[1];
  float value = 0;
  std::memcpy(&value, array.bytes.data() + (row * row_stride + column * column_stride) * 4, 4);
  return value;
}

TEST(StateDict, EveryWayToSaveOneGivesTheSameArrays) {
  for (const char* name :
       {"plain.pt", "ordered.pt", "parameters.pt", "nested.pt", "state_dict.pt", "model_state_dict.pt",
        "module_prefix.pt", "blocks.pt", "transposed.pt", "legacy.pth"}) {
    const ModelFormat format = detect_model(fixture(name));
    EXPECT_EQ(format,
              std::string(name) == "legacy.pth" ? ModelFormat::kLegacyStateDict : ModelFormat::kStateDict)
        << name;
    const CheckpointFiles checkpoint = read_checkpoint(fixture(name), format);
    ASSERT_EQ(checkpoint.arrays.size(), 2U) << name;
    const Array& weight = find(checkpoint, "fc.weight");
    EXPECT_EQ(weight.shape, (std::vector<int64_t>{2, 3})) << name;
    for (int i = 0; i < 6; ++i) EXPECT_EQ(at(weight, i / 3, i % 3), static_cast<float>(i)) << name;
    std::array<float, 2> bias{};
    std::memcpy(bias.data(), find(checkpoint, "fc.bias").bytes.data(), sizeof(bias));
    EXPECT_EQ(bias[0], 6) << name;
    EXPECT_EQ(bias[1], 7) << name;
  }
}

TEST(StateDict, KeepsNarrowTypes) {
  const CheckpointFiles checkpoint = read_checkpoint(fixture("half.pt"), ModelFormat::kStateDict);
  EXPECT_EQ(find(checkpoint, "fc.weight").dtype, DType::kF16);
  EXPECT_EQ(find(checkpoint, "fc.bias").dtype, DType::kBF16);
}

TEST(StateDict, SaysWhatItUnwrappedAndPassedOver) {
  const CheckpointFiles checkpoint = read_checkpoint(fixture("nested.pt"), ModelFormat::kStateDict);
  ASSERT_EQ(checkpoint.notes.size(), 1U);
  EXPECT_EQ(checkpoint.notes[0], "state dict taken from entry 'model'");
}

std::string refusal(const std::string& name) {
  try {
    read_checkpoint(fixture(name), detect_model(fixture(name)));
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData);
    return failure.what();
  }
  return "accepted";
}

TEST(StateDict, KeepsTypesThatAreHardlyComputedWith) {
  const CheckpointFiles checkpoint = read_checkpoint(fixture("odd_types.pt"), ModelFormat::kStateDict);
  const Array& fp8 = find(checkpoint, "fp8.weight");
  EXPECT_EQ(fp8.dtype, DType::kF8E4M3);
  const std::array<unsigned char, 6> codes = {0x00, 0x38, 0x40, 0x44, 0x48, 0x4a};  // 0 to 5
  EXPECT_EQ(std::memcmp(fp8.bytes.data(), codes.data(), codes.size()), 0);
  EXPECT_EQ(find(checkpoint, "rotary").dtype, DType::kC64);
  EXPECT_EQ(find(checkpoint, "rotary").bytes.size(), 24U);
  EXPECT_EQ(find(checkpoint, "wide").dtype, DType::kU16);
  EXPECT_EQ(std::to_integer<int>(find(checkpoint, "wide").bytes[1]), 0xff);
}

TEST(StateDict, RefusesDictsThatHoldEachOtherWithoutEnd) {
  EXPECT_NE(refusal("shared_dicts.pt").find("more than 200000 entries"), std::string::npos);
}

TEST(StateDict, RefusesAWholeModuleWithTheWayOut) {
  const std::string text = refusal("whole_module.pt");
  EXPECT_NE(text.find("torch.nn.modules.linear.Linear"), std::string::npos) << text;
  EXPECT_NE(text.find("torch.jit.script(model).save(path)"), std::string::npos) << text;
}

TEST(StateDict, RefusesACheckpointWithoutTensors) {
  EXPECT_NE(refusal("no_tensors.pt").find("holds no tensors"), std::string::npos);
}

// Every way to cut or flip a checkpoint ends in an answer: a refusal, or arrays inside the file.
TEST(StateDict, DamagedFilesAreAnsweredWithoutACrash) {
  for (const char* name : {"nested.pt", "legacy.pth"}) {
    const MappedFile map(fixture(name));
    const std::string whole(reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size());
    const auto read = [&](const std::string& content) {
      const Bytes bytes = std::as_bytes(std::span(content));
      try {
        if (std::string(name) == "legacy.pth") {
          read_legacy_state_dict(bytes, "x");
        } else {
          read_state_dict_zip(read_zip(bytes, "x"), "x");
        }
      } catch (const Error& failure) {
        EXPECT_EQ(failure.code(), Exit::kBadData);
      }
    };
    for (size_t size = 0; size < whole.size(); size += 7) read(whole.substr(0, size));
    for (size_t place = 0; place < whole.size(); ++place) {
      std::string flipped = whole;
      flipped[place] = static_cast<char>(flipped[place] ^ (1 << (place % 8)));
      read(flipped);
    }
  }
}

}  // namespace
}  // namespace mcompress
