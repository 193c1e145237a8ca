#include "mcompress/model/checkpoint.h"

#include <algorithm>
#include <array>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

std::string scale_name(const std::string& array) { return array + "_scale"; }

namespace {

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kBool: return at::kBool;
    case DType::kU8: return at::kByte;
    case DType::kI8: return at::kChar;
    case DType::kI16: return at::kShort;
    case DType::kF16: return at::kHalf;
    case DType::kBF16: return at::kBFloat16;
    case DType::kI32: return at::kInt;
    case DType::kF32: return at::kFloat;
    case DType::kI64: return at::kLong;
    case DType::kF64: return at::kDouble;
    case DType::kU16: return at::kUInt16;
    case DType::kU32: return at::kUInt32;
    case DType::kU64: return at::kUInt64;
    case DType::kF8E4M3: return at::kFloat8_e4m3fn;
    case DType::kF8E5M2: return at::kFloat8_e5m2;
    case DType::kF8E8M0: return at::kFloat8_e8m0fnu;
    case DType::kC64: return at::kComplexFloat;
    case DType::kC128: return at::kComplexDouble;
  }
  return at::kByte;
}

}  // namespace

bool guess_kind(const Array& array, LayerKind& kind) {
  if (!is_floating(array.dtype) || !array.name.ends_with("weight")) return false;
  switch (array.shape.size()) {
    case 2: kind = LayerKind::kLinear; break;
    case 3: kind = LayerKind::kConv1d; break;
    case 4: kind = LayerKind::kConv2d; break;
    default: return false;
  }
  if (kind == LayerKind::kLinear && is_embedding(array.name)) kind = LayerKind::kEmbedding;
  return true;
}

bool is_embedding(const std::string& weight) {
  // The last module of the name: a linear layer inside an 'embeddings' block is no embedding.
  const size_t dot = weight.rfind('.');
  const size_t module = dot == std::string::npos || dot == 0 ? std::string::npos : weight.rfind('.', dot - 1);
  constexpr std::array kEmbeddingNames = {"embed", "wte.weight", "wpe.weight"};
  return std::any_of(kEmbeddingNames.begin(), kEmbeddingNames.end(), [&](const char* part) {
    return weight.find(part, module == std::string::npos ? 0 : module) != std::string::npos;
  });
}

std::string obstacle_of(const Array& array, const std::set<std::string>& names) {
  if (array.bytes.empty()) return "it is empty";
  if (size_of(array.dtype) == 1) return fmt::format("it is {} already", name_of(array.dtype));
  const std::string scale = scale_name(array.name);
  return names.contains(scale) ? fmt::format("'{}' exists, so it seems to be quantized already", scale) : "";
}

std::set<std::string> names_of(const CheckpointFiles& checkpoint) {
  std::set<std::string> names;
  for (const Array& array : checkpoint.arrays) names.insert(array.name);
  return names;
}

at::Tensor rows_of(const Array& array, int64_t begin, int64_t end) {
  const at::ScalarType type = scalar_type(array.dtype);
  auto* data = const_cast<std::byte*>(array.bytes.data());
  if (!array.strides.empty()) {
    at::Tensor whole = at::from_blob(data, array.shape, array.strides, type);
    return array.shape.empty() ? whole : whole.slice(0, begin, end);
  }
  std::vector<int64_t> shape = array.shape;
  size_t row_bytes = array.bytes.size();
  if (!shape.empty()) {
    row_bytes = shape[0] == 0 ? 0 : array.bytes.size() / static_cast<size_t>(shape[0]);
    shape[0] = end - begin;
  }
  data += static_cast<size_t>(begin) * row_bytes;
  if (reinterpret_cast<uintptr_t>(data) % size_of(array.dtype) == 0) return at::from_blob(data, shape, type);
  at::Tensor copy = at::empty(shape, type);
  std::copy_n(data, copy.nbytes(), static_cast<std::byte*>(copy.data_ptr()));
  return copy;
}

at::Tensor map_rows(const Array& array, const SharedFile& file) {
  const at::Tensor view = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
  const Bytes bytes = file->bytes();
  const auto* data = static_cast<const std::byte*>(view.const_data_ptr());
  if (data < bytes.data() || data >= bytes.data() + bytes.size()) return view.clone();
  return at::from_blob(
      const_cast<void*>(view.const_data_ptr()), view.sizes(), view.strides(), [file](void*) {},
      view.options());
}

ElementCount count_elements_of(const Array& array, const MappedFile& map) {
  if (!array.strides.empty())
    return count_elements_of(rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]));
  const auto total = static_cast<int64_t>(array.bytes.size() / size_of(array.dtype));
  const Array flat{array.name, array.dtype, {total}, {}, array.bytes};
  ElementCount count;
  for_row_pieces(0, total, 1, [&](int64_t begin, int64_t end) {
    check_interrupt();
    const ElementCount part = count_elements_of(rows_of(flat, begin, end));
    count.elements += part.elements;
    count.nonzeros += part.nonzeros;
    count.non_finite += part.non_finite;
    map.drop(array.bytes.first(static_cast<size_t>(end) * size_of(array.dtype)));
  });
  return count;
}

}  // namespace mcompress
