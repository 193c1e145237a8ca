// Packed checkpoints that are wrong in one thing each. All are refused with code 65 and words that name the
// layer or the file; this binary runs under sanitizers too.
#include <cstring>
#include <functional>
#include <limits>
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/packed_folder.h"
#include "test_files.h"

namespace mcompress {
namespace {

using nlohmann::json;
using testing::TemporaryFolder;
using testing::write_file;

struct Tensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

const std::string kLayer = "model.layers.0.mlp.up_proj";

template <typename Number>
std::string bytes_of(const std::vector<Number>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)};
}

size_t size_of_type(const std::string& dtype) {
  return dtype == "I64" ? 8 : dtype == "F16" || dtype == "BF16" ? 2 : dtype == "U8" ? 1 : 4;
}

// The bytes that its type and shape ask for, the first ones staying.
void fit(Tensor& tensor) {
  size_t count = size_of_type(tensor.dtype);
  for (const int64_t size : tensor.shape) count *= static_cast<size_t>(size);
  tensor.bytes.resize(count, '\x11');
}

Tensor words(const std::vector<int64_t>& shape) {
  Tensor tensor = {"I32", shape, ""};
  fit(tensor);
  return tensor;
}

Tensor ones_in_half(const std::vector<int64_t>& shape) {
  std::vector<uint16_t> values(static_cast<size_t>(shape[0] * shape[1]), 0x3C00);
  return {"F16", shape, bytes_of(values)};
}

// 64 outputs of 96 inputs, in 4 bits and groups of 32.
Tensors valid(PackedForm form) {
  if (form == PackedForm::kCompressedTensors)
    return {{".weight_packed", words({64, 12})},
            {".weight_scale", ones_in_half({64, 3})},
            {".weight_shape", {"I64", {2}, bytes_of<int64_t>({64, 96})}},
            {".weight_zero_point", words({8, 3})}};
  if (form == PackedForm::kPlainCodes)
    return {{".weight", {"I8", {64, 96}, std::string(size_t{64} * 96, '\5')}},
            {".weight_scale", ones_in_half({64, 3})},
            {".weight_zero_point", {"I8", {64, 3}, std::string(size_t{64} * 3, '\1')}}};
  Tensors tensors = {{".qzeros", words({3, 8})}, {".scales", ones_in_half({3, 64})}};
  if (form == PackedForm::kAwq) {
    tensors[".qweight"] = words({96, 8});
    return tensors;
  }
  std::vector<int32_t> groups(96);
  for (size_t i = 0; i < groups.size(); ++i) groups[i] = static_cast<int32_t>(i / 32);
  tensors[".qweight"] = words({12, 64});
  tensors[".g_idx"] = {"I32", {96}, bytes_of(groups)};
  return tensors;
}

class MalformedPacked : public ::testing::TestWithParam<PackedForm> {
 protected:
  std::string answer_to(const Tensors& tensors) const {
    json header = json::object();
    std::string data;
    for (const auto& [suffix, tensor] : tensors) {
      header[suffix[0] == '.' ? kLayer + suffix : suffix] = {
          {"dtype", tensor.dtype},
          {"shape", tensor.shape},
          {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    const std::string text = header.dump();
    write_file(folder_ / "model.safetensors", bytes_of<uint64_t>({text.size()}) + text + data);
    write_file(folder_ / "config.json", R"({"model_type": "llama"})");
    try {
      const CheckpointFiles checkpoint = read_checkpoint(folder_ / "", ModelFormat::kHuggingFace);
      const PackedReader reader(checkpoint, GetParam());
      for (const auto& [name, sizes] : reader.layers()) reader.read(name);
      return "";
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData) << failure.what();
      return failure.what();
    }
  }

  void expect_refused(const std::string& what, const Tensors& tensors) {
    EXPECT_NE(answer_to(tensors).find(kLayer), std::string::npos) << what << ": " << answer_to(tensors);
  }

  // Changes one tensor of a valid layer.
  void expect_refused(const std::string& suffix, const std::string& what,
                      const std::function<void(Tensor&)>& change, bool fitting = true) {
    Tensors tensors = valid(GetParam());
    change(tensors.at(suffix));
    if (fitting) fit(tensors.at(suffix));
    expect_refused(suffix + " " + what, tensors);
  }

  TemporaryFolder folder_;
};

TEST_P(MalformedPacked, ValidOneIsRead) { EXPECT_EQ(answer_to(valid(GetParam())), ""); }

TEST_P(MalformedPacked, TensorsOfOtherTypesAndShapesAreRefused) {
  for (const auto& [suffix, tensor] : valid(GetParam())) {
    if (suffix != ".weight_zero_point") {  // without which it is symmetric
      Tensors tensors = valid(GetParam());
      tensors.erase(suffix);
      // Without its first tensor the others have no layer.
      expect_refused(suffix + " is missing", tensors);
    }
    for (const std::string other : {"U8", "F32", "I32", "I64"}) {
      const bool floating = tensor.dtype == "F16", vector = tensor.shape.size() == 1;
      if ((floating && other == "F32") || (vector && (other == "I32" || other == "I64"))) continue;
      if (other != tensor.dtype) expect_refused(suffix, other, [&](Tensor& t) { t.dtype = other; });
    }
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      expect_refused(suffix, "one more", [&](Tensor& t) { t.shape[i] += 1; });
      expect_refused(suffix, "one less", [&](Tensor& t) { t.shape[i] -= 1; });
      expect_refused(suffix, "twice and one", [&](Tensor& t) { t.shape[i] = 2 * t.shape[i] + 1; });
      expect_refused(suffix, "none", [&](Tensor& t) { t.shape[i] = 0; });
    }
    expect_refused(suffix, "no dimensions", [](Tensor& t) { t.shape = {}; });
    if (tensor.shape.size() == 2) {
      expect_refused(suffix, "one dimension", [](Tensor& t) { t.shape = {t.shape[0] * t.shape[1]}; });
      expect_refused(suffix, "three dimensions", [](Tensor& t) { t.shape.insert(t.shape.begin(), 1); });
      if (tensor.shape[0] != tensor.shape[1])
        expect_refused(suffix, "turned", [](Tensor& t) { std::swap(t.shape[0], t.shape[1]); });
    }
  }
}

TEST_P(MalformedPacked, ScalesThatAreNoNumbersAreRefused) {
  const std::string suffix = is_compressed_tensors(GetParam()) ? ".weight_scale" : ".scales";
  const size_t count = 3 * 64;
  for (const uint16_t odd : {0x7C00, 0xFC00, 0x7E00, 0x7C01}) {
    expect_refused(suffix, "half", [&](Tensor& t) { std::memcpy(t.bytes.data() + 10, &odd, 2); });
    expect_refused(suffix, "bfloat16", [&](Tensor& t) {
      const auto wide = static_cast<uint16_t>(odd == 0x7E00 ? 0x7FC0 : 0x7F80);
      t = {"BF16", t.shape, bytes_of(std::vector<uint16_t>(count, wide))};
    });
  }
  for (const float odd : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    expect_refused(suffix, "float", [&](Tensor& t) {
      std::vector<float> values(count, 1.0F);
      values[count - 1] = odd;
      t = {"F32", t.shape, bytes_of(values)};
    });
  }
  // No numbers of float32 either.
  for (const double odd : {1e300, -1e300, 1e-300}) {
    expect_refused(suffix, "double", [&](Tensor& t) {
      std::vector<double> values(count, 1.0);
      values[count - 1] = odd;
      t = {"F64", t.shape, bytes_of(values)};
    });
  }
}

TEST_P(MalformedPacked, GroupsAndShapesOutOfRangeAreRefused) {
  if (valid(GetParam()).contains(".g_idx")) {
    for (const int32_t odd :
         {-1, 3, 77, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
      for (const size_t place : {size_t{0}, size_t{95}})
        expect_refused(".g_idx", std::to_string(odd), [&](Tensor& t) {
          std::memcpy(t.bytes.data() + place * sizeof(odd), &odd, sizeof(odd));
        });
    }
    for (const int64_t odd : {int64_t{1} << 40, std::numeric_limits<int64_t>::min()})
      expect_refused(".g_idx", std::to_string(odd), [&](Tensor& t) {
        t = {"I64", t.shape, bytes_of(std::vector<int64_t>(96, odd))};
      });
  }
  if (GetParam() != PackedForm::kCompressedTensors) return;
  constexpr int64_t kHuge = int64_t{1} << 62;
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{{0, 96},
                                                                              {64, 0},
                                                                              {-64, 96},
                                                                              {64, -96},
                                                                              {65, 96},
                                                                              {63, 96},
                                                                              {64, 97},
                                                                              {64, 95},
                                                                              {64, 48},
                                                                              {96, 64},
                                                                              {kHuge, 96},
                                                                              {64, kHuge},
                                                                              {-kHuge - kHuge, 96},
                                                                              {64, -kHuge - kHuge},
                                                                              {64, kHuge + (kHuge - 1)}})
    expect_refused(".weight_shape", std::to_string(rows) + " " + std::to_string(columns), [&](Tensor& t) {
      t.bytes = bytes_of<int64_t>({rows, columns});
    });
  Tensors tensors = valid(GetParam());
  tensors[".weight_g_idx"] = {"I32", {96}, bytes_of(std::vector<int32_t>(96, 3))};
  expect_refused("a group too high", tensors);
}

TEST_P(MalformedPacked, LayersThatAreNotWholeAreRefused) {
  Tensors tensors = valid(GetParam());
  tensors[".weight"] = ones_in_half({64, 96});
  expect_refused("a weight beside it", tensors);
  tensors = valid(GetParam());
  const std::string suffix = tensors.begin()->first;
  tensors = {{suffix, tensors.at(suffix)}};
  expect_refused("one tensor alone", tensors);
}

INSTANTIATE_TEST_SUITE_P(Forms, MalformedPacked,
                         ::testing::Values(PackedForm::kGptq, PackedForm::kGptqV2, PackedForm::kAwq,
                                           PackedForm::kCompressedTensors, PackedForm::kPlainCodes),
                         [](const auto& form) {
                           return form.param == PackedForm::kGptqV2       ? "GptqV2"
                                  : form.param == PackedForm::kGptq       ? "Gptq"
                                  : form.param == PackedForm::kAwq        ? "Awq"
                                  : form.param == PackedForm::kPlainCodes ? "PlainCodes"
                                                                          : "CompressedTensors";
                         });

}  // namespace
}  // namespace mcompress
