#include <algorithm>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/pieces.h"
#include "stored_type.h"

namespace mcompress {

namespace {

constexpr uint64_t kPieceBytes = uint64_t{256} << 10;

// Rows that fit one piece.
int64_t rows_a_piece(const Array& array) {
  const auto row_bytes = static_cast<uint64_t>(array.shape[1]) * size_of(array.dtype);
  return static_cast<int64_t>(std::max<uint64_t>(1, kPieceBytes / std::max<uint64_t>(1, row_bytes)));
}

// Calls `use` with pieces of rows as float32, after a check that they are finite.
void for_each_piece(const Array& array, const MappedFile& map,
                    const std::function<void(int64_t begin, const at::Tensor& rows)>& use) {
  const int64_t piece = rows_a_piece(array);
  for (int64_t begin = 0; begin < array.shape[0]; begin += piece) {
    check_interrupt();
    const int64_t end = std::min(begin + piece, array.shape[0]);
    const at::Tensor rows = rows_of(array, begin, end).to(at::kFloat);
    if (!rows.isfinite().all().item<bool>()) {
      throw bad_data(
          "tensor '{}' holds NaN, infinity or values beyond float32; repair the model or leave it out with "
          "--ignore",
          array.name);
    }
    use(begin, rows);
    // The kernel maps pages around a fault again, so all that was read is dropped each time.
    if (array.strides.empty()) {
      const auto row_bytes = static_cast<size_t>(array.shape[1]) * size_of(array.dtype);
      map.drop(array.bytes.first(static_cast<size_t>(end) * row_bytes));
    }
  }
}

at::Tensor to_narrow(const Array& array, const at::Tensor& rows, StoredType type) {
  at::Tensor narrow = rows.to(type == StoredType::kFloat16 ? at::kHalf : at::kBFloat16);
  if (!narrow.isfinite().all().item<bool>()) {
    throw bad_data(
        "tensor '{}' has values beyond the range of float16; use bfloat16 or leave it out with --ignore",
        array.name);
  }
  return narrow;
}

// One scale for the whole array: a first pass finds the largest magnitude.
void write_int8_tensor(const Array& array, const MappedFile& map, const SafetensorsWriter& writer,
                       OutputFile& file) {
  float largest = 0;
  for_each_piece(array, map, [&](int64_t, const at::Tensor& rows) {
    largest = std::max(largest, rows.abs().max().item<float>());
  });
  const float scale = largest > 0 ? largest / 127.0F : 1.0F;
  for_each_piece(array, map, [&](int64_t begin, const at::Tensor& rows) {
    const at::Tensor codes = (rows / scale).round().clamp(-127, 127).to(at::kChar);
    writer.write(file, array.name, static_cast<uint64_t>(begin * array.shape[1]), bytes_of(codes));
  });
  writer.write(file, scale_name(array.name), 0, std::as_bytes(std::span(&scale, 1)));
}

void write_chosen(const Array& array, const MappedFile& map, StoredType type, const QuantizeRows& quantize,
                  const SafetensorsWriter& writer, OutputFile& file) {
  if (type == StoredType::kInt8Tensor) return write_int8_tensor(array, map, writer, file);
  for_each_piece(array, map, [&](int64_t begin, const at::Tensor& rows) {
    const auto offset = static_cast<uint64_t>(begin * array.shape[1]) * size_of(stored_dtype(type));
    if (type != StoredType::kInt8Rows) {
      writer.write(file, array.name, offset, bytes_of(to_narrow(array, rows, type)));
      return;
    }
    const IntChannel int8 = quantize(rows);
    writer.write(file, array.name, offset, bytes_of(int8.codes.contiguous()));
    writer.write(file, scale_name(array.name), static_cast<uint64_t>(begin) * sizeof(float),
                 bytes_of(int8.scale.contiguous()));
  });
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

SafetensorsWriter make_writer(const CheckpointFiles& checkpoint, size_t part, const StoragePlan& plan) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    if (checkpoint.file_of[i] != part) continue;
    entries.push_back({array.name, plan.chosen[i] ? stored_dtype(plan.type) : array.dtype, array.shape});
    if (!plan.chosen[i] || !has_scale(plan.type)) continue;
    const bool rows = plan.type == StoredType::kInt8Rows;
    entries.push_back({scale_name(array.name), DType::kF32,
                       rows ? std::vector<int64_t>{array.shape[0], 1} : std::vector<int64_t>{1}});
  }
  return {std::move(entries), checkpoint.metadata};
}

}  // namespace

uint64_t predict_compressed_bytes(const CheckpointFiles& checkpoint, const StoragePlan& plan) {
  uint64_t bytes = 0;
  for (size_t part = 0; part < checkpoint.files.size(); ++part)
    bytes += make_writer(checkpoint, part, plan).file_bytes();
  return bytes;
}

void write_compressed(const CheckpointFiles& checkpoint, size_t part, const StoragePlan& plan,
                      const QuantizeRows& quantize, OutputFile& file) {
  const SafetensorsWriter writer = make_writer(checkpoint, part, plan);
  writer.write_header(file);
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    if (checkpoint.file_of[i] != part) continue;
    const MappedFile& map = *checkpoint.files[part];
    if (plan.chosen[i]) {
      write_chosen(array, map, plan.type, quantize, writer, file);
    } else {
      write_unchanged(array, map, writer, file);
    }
  }
}

}  // namespace mcompress
