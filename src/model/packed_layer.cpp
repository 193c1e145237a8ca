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
    case PackedForm::kPlainCodes: return "safetensors";
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
    case PackedForm::kPlainCodes: {
      std::vector<PackedPart> parts = {{".weight", DType::kI8, {n, k}},
                                       {".weight_scale", DType::kF16, {n, groups}}};
      if (!layer.symmetric) parts.push_back({".weight_zero_point", DType::kI8, {n, groups}});
      return parts;
    }
    case PackedForm::kCompressedTensors: break;
  }
  // transformers has no packed embeddings.
  if (layer.embedding) return packed_parts(PackedForm::kPlainCodes, layer);
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
                                                              ".weight_g_idx"},
                                        kPlainCodes = {".weight", ".weight_scale", ".weight_zero_point"};
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2: return kGptq;
    case PackedForm::kAwq: return kAwq;
    case PackedForm::kPlainCodes: return kPlainCodes;
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

int packed_width(int64_t words, int64_t codes) {
  for (const int bits : {4, 8, 2, 3, 5, 6, 7}) {
    if (words_for(codes, bits) == words) return bits;
  }
  return 0;
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
    case PackedForm::kCompressedTensors:
    case PackedForm::kPlainCodes: break;
  }
  return "";
}

std::string packed_refusal(PackedForm form, const PackedLayer& layer) {
  const char* format = name_of(form);
  const bool gptq = is_gptq(form), awq = form == PackedForm::kAwq;
  if (layer.embedding && (gptq || awq))
    return fmt::format("--format {} has no embeddings; use --format compressed-tensors or dequantized",
                       format);
  if (layer.embedding && layer.bits != 8)
    return fmt::format(
        "--format {} has embeddings of 8 bits, and none of {}; use --embeddings 8, or --format dequantized",
        format, layer.bits);
  if (layer.embedding) return "";
  if (gptq && layer.bits != 2 && layer.bits != 3 && layer.bits != 4 && layer.bits != 8)
    return fmt::format(
        "--format gptq has no weights of {} bits; use 2, 3, 4 or 8, or --format "
        "compressed-tensors",
        layer.bits);
  if (gptq) return "";
  if (awq && layer.bits != 4)
    return fmt::format("--format awq has no weights of {} bits; use 4, or --format compressed-tensors",
                       layer.bits);
  if (form == PackedForm::kCompressedTensors &&
      packed_width(words_for(layer.inputs, layer.bits), layer.inputs) != layer.bits)
    return fmt::format(
        "--format {} does not tell {} bits of {} input features from others; use --bits 4, or "
        "leave the layer out with --ignore",
        format, layer.bits, layer.inputs);
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
