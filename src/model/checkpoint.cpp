#include "mcompress/model/checkpoint.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/formats/safetensors.h"

namespace mcompress {

namespace {

constexpr uint64_t kPieceBytes = uint64_t{256} << 10;

at::ScalarType scalar_type(const Array& array) {
  switch (array.dtype) {
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
    default:
      throw bad_data("tensor '{}' has the dtype {}, which is not computed with", array.name,
                     name_of(array.dtype));
  }
}

Bytes bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

// Rows that fit one piece.
int64_t rows_a_piece(const Array& array) {
  const auto row_bytes = static_cast<uint64_t>(array.shape[1]) * size_of(array.dtype);
  return static_cast<int64_t>(std::max<uint64_t>(1, kPieceBytes / std::max<uint64_t>(1, row_bytes)));
}

void write_quantized(const Array& array, const MappedFile& map, const QuantizeRows& quantize,
                     const SafetensorsWriter& writer, OutputFile& file) {
  const int64_t rows = array.shape[0];
  const int64_t piece = rows_a_piece(array);
  for (int64_t begin = 0; begin < rows; begin += piece) {
    check_interrupt();
    const int64_t end = std::min(begin + piece, rows);
    const at::Tensor part = rows_of(array, begin, end).to(at::kFloat);
    if (!part.isfinite().all().item<bool>()) {
      throw bad_data("tensor '{}' holds NaN or infinity; repair the model or leave it out with --ignore",
                     array.name);
    }
    const Int8Channel int8 = quantize(part);
    writer.write(file, array.name, static_cast<uint64_t>(begin * array.shape[1]),
                 bytes_of(int8.codes.contiguous()));
    writer.write(file, array.name + "_scale", static_cast<uint64_t>(begin) * sizeof(float),
                 bytes_of(int8.scale.contiguous()));
    // The kernel maps pages around a fault again, so all that was read is dropped each time.
    if (array.strides.empty()) {
      const auto row_bytes = static_cast<size_t>(array.shape[1]) * size_of(array.dtype);
      map.drop(array.bytes.first(static_cast<size_t>(end) * row_bytes));
    }
  }
}

void write_unchanged(const Array& array, const MappedFile& map, const SafetensorsWriter& writer,
                     OutputFile& file) {
  if (!array.strides.empty()) {
    const at::Tensor copy = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]).contiguous();
    writer.write(file, array.name, 0, bytes_of(copy));
    return;
  }
  for (size_t at = 0; at < array.bytes.size(); at += kPieceBytes) {
    check_interrupt();
    const Bytes part = array.bytes.subspan(at, std::min<size_t>(kPieceBytes, array.bytes.size() - at));
    writer.write(file, array.name, at, part);
    map.drop(array.bytes.first(at + part.size()));
  }
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
  constexpr std::array kEmbeddingNames = {"embed", "wte.weight", "wpe.weight"};
  const bool named = std::any_of(kEmbeddingNames.begin(), kEmbeddingNames.end(), [&](const char* part) {
    // The last module of the name: a linear layer inside an 'embeddings' block is no embedding.
    const size_t weight = array.name.rfind('.');
    const size_t module =
        weight == std::string::npos || weight == 0 ? std::string::npos : array.name.rfind('.', weight - 1);
    return array.name.find(part, module == std::string::npos ? 0 : module) != std::string::npos;
  });
  if (named && kind == LayerKind::kLinear) kind = LayerKind::kEmbedding;
  return true;
}

at::Tensor rows_of(const Array& array, int64_t begin, int64_t end) {
  const at::ScalarType type = scalar_type(array);
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

void write_int8_safetensors(const CheckpointFiles& checkpoint, const std::vector<bool>& chosen,
                            const QuantizeRows& quantize, OutputFile& file) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    entries.push_back({array.name, chosen[i] ? DType::kI8 : array.dtype, array.shape});
    if (chosen[i]) entries.push_back({array.name + "_scale", DType::kF32, {array.shape[0], 1}});
  }
  const SafetensorsWriter writer(std::move(entries), checkpoint.metadata);
  writer.write_header(file);
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const MappedFile& map = *checkpoint.files[checkpoint.file_of[i]];
    if (chosen[i]) {
      write_quantized(array, map, quantize, writer, file);
    } else {
      write_unchanged(array, map, writer, file);
    }
  }
}

}  // namespace mcompress
