#include "mcompress/model/packed_layer.h"

#include <algorithm>

#include <fmt/format.h>

#include "mcompress/base/checked.h"
#include "packed_words.h"

namespace mcompress {

const char* name_of(PackedForm form) {
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2: return "gptq";
    case PackedForm::kAwq: return "awq";
    case PackedForm::kCompressedTensors: break;
  }
  return "compressed-tensors";
}

int64_t PackedLayer::groups() const {
  return group_size < 0 || group_size >= inputs ? 1 : (inputs + group_size - 1) / group_size;
}

std::vector<PackedPart> packed_parts(PackedForm form, const PackedLayer& layer) {
  const int64_t n = layer.outputs, k = layer.inputs, groups = layer.groups();
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2:
      return {{".qweight", DType::kI32, {words_for(k, layer.bits), n}},
              {".qzeros", DType::kI32, {groups, words_for(n, layer.bits)}},
              {".scales", DType::kF16, {groups, n}},
              {".g_idx", DType::kI32, {k}}};
    case PackedForm::kAwq:
      return {{".qweight", DType::kI32, {k, n / 8}},
              {".qzeros", DType::kI32, {groups, n / 8}},
              {".scales", DType::kF16, {groups, n}}};
    case PackedForm::kCompressedTensors: break;
  }
  std::vector<PackedPart> parts = {{".weight_packed", DType::kI32, {n, words_for(k, layer.bits)}},
                                   {".weight_scale", DType::kF16, {n, groups}},
                                   {".weight_shape", DType::kI64, {2}}};
  if (!layer.symmetric)
    parts.push_back({".weight_zero_point", DType::kI32, {words_for(n, layer.bits), groups}});
  return parts;
}

const std::vector<std::string>& packed_suffixes(PackedForm form) {
  static const std::vector<std::string> kGptq = {".qweight", ".qzeros", ".scales", ".g_idx"},
                                        kAwq = {".qweight", ".qzeros", ".scales"},
                                        kCompressedTensors = {".weight_packed", ".weight_scale",
                                                              ".weight_shape", ".weight_zero_point",
                                                              ".weight_g_idx"};
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2: return kGptq;
    case PackedForm::kAwq: return kAwq;
    case PackedForm::kCompressedTensors: break;
  }
  return kCompressedTensors;
}

uint64_t packed_bytes(PackedForm form, const PackedLayer& layer) {
  uint64_t bytes = 0;
  for (const PackedPart& part : packed_parts(form, layer))
    bytes += count_elements(part.shape).value() * size_of(part.dtype);
  return bytes;
}

std::string packed_obstacle(PackedForm form, int64_t outputs, int64_t inputs) {
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2:
      if (inputs % kWord == 0 && outputs % kWord == 0) return "";
      return fmt::format("GPTQ's format holds multiples of 32 inputs and outputs, and it has {} and {}",
                         inputs, outputs);
    case PackedForm::kAwq:
      if (outputs % kWord == 0) return "";
      return fmt::format("AWQ's format holds multiples of 32 outputs, and it has {}", outputs);
    case PackedForm::kCompressedTensors: break;
  }
  return "";
}

std::string packed_refusal(PackedForm form, const PackedLayer& layer) {
  if (form == PackedForm::kGptq || form == PackedForm::kGptqV2)
    return "";  // which has all widths that we have
  const bool awq = form == PackedForm::kAwq;
  const char* format = name_of(form);
  if (layer.bits != 4 && (awq || layer.bits != 8))
    return fmt::format("--format {} has no weights of {} bits; use {}, or --format gptq", format, layer.bits,
                       awq ? "4" : "4 or 8");
  // AWQ's readers count groups by the size that all layers have.
  const int64_t size = awq ? layer.group_size : std::min(layer.group_size, layer.inputs);
  if (layer.group_size > 0 && layer.inputs % size != 0)
    return fmt::format(
        "--format {} has groups of one size, and {} does not divide {} input features; use a "
        "divisor, or --format gptq",
        format, layer.group_size, layer.inputs);
  return "";
}

}  // namespace mcompress
