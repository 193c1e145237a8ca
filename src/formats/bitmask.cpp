#include "mcompress/formats/bitmask.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <set>
#include <vector>

#include <nlohmann/json.hpp>

#include "mcompress/formats/base64.h"
#include "bitmask_layout.h"
#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/sha256.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/zstd.h"

namespace mcompress {

namespace {

// A weight as rows of elements of one size.
struct Matrix {
  uint64_t rows, columns, element_bytes;
  Bytes bytes;
  Bytes row(uint64_t index) const {
    return bytes.subspan(index * columns * element_bytes, columns * element_bytes);
  }
};

// Calls `use` with an unsigned integer as wide as one element.
template <typename Use>
auto with_element(uint64_t bytes, Use use) {
  switch (bytes) {
    case sizeof(uint8_t): return use(uint8_t{});
    case sizeof(uint16_t): return use(uint16_t{});
    case sizeof(uint32_t): return use(uint32_t{});
    default: return use(uint64_t{});
  }
}

template <typename T>
T element_at(Bytes bytes, uint64_t index) {  // which need not be aligned
  T element{};
  std::memcpy(&element, bytes.data() + index * sizeof(T), sizeof(T));
  return element;
}

// The bits of some rows, and their kept elements behind each other.
struct Packed {
  std::vector<std::byte> mask, values;
};

void pack_row(const Matrix& matrix, uint64_t row, Packed& packed) {
  const Bytes elements = matrix.row(row);
  const size_t mask_at = packed.mask.size();
  size_t values_at = packed.values.size();
  packed.mask.resize(mask_at + mask_row_bytes(matrix.columns));
  packed.values.resize(values_at + elements.size());
  with_element(matrix.element_bytes, [&]<typename T>(T /*type*/) {
    for (uint64_t i = 0; i < matrix.columns; ++i) {
      const T element = element_at<T>(elements, i);
      std::memcpy(packed.values.data() + values_at, &element, sizeof(T));
      if (element == 0) continue;
      values_at += sizeof(T);
      packed.mask[mask_at + i / kBits] |= std::byte{1} << static_cast<int>(i % kBits);
    }
  });
  packed.values.resize(values_at);
}

uint64_t count_nonzeros(const Matrix& matrix) {
  return with_element(matrix.element_bytes, [&]<typename T>(T /*type*/) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < matrix.rows * matrix.columns; ++i)
      count += element_at<T>(matrix.bytes, i) == 0 ? 0 : 1;
    return count;
  });
}

// The array as a matrix where its sparse form is smaller than its dense one.
struct SparseArray {
  const Array* array;
  Matrix matrix;
  uint64_t nonzeros;
};

std::optional<SparseArray> as_sparse(const Array& array) {
  const bool plain = array.strides.empty() && array.shape.size() >= 2 && is_floating(array.dtype);
  if (!plain || array.bytes.empty()) return std::nullopt;
  const auto rows = static_cast<uint64_t>(array.shape[0]);
  const uint64_t size = size_of(array.dtype);
  const Matrix matrix{rows, array.bytes.size() / size / rows, size, array.bytes};
  const uint64_t nonzeros = count_nonzeros(matrix);
  constexpr uint64_t kHeaders = 512;  // of four arrays in place of one
  const uint64_t stored =
      nonzeros * size + rows * (mask_row_bytes(matrix.columns) + sizeof(int64_t)) + kHeaders;
  if (stored >= array.bytes.size()) return std::nullopt;
  return SparseArray{&array, matrix, nonzeros};
}

void announce(const SparseArray& sparse, std::vector<SafetensorsWriter::Entry>& entries) {
  const std::string& name = sparse.array->name;
  const auto rows = static_cast<int64_t>(sparse.matrix.rows);
  entries.push_back({name + ".shape", DType::kI64, {2}});
  entries.push_back(
      {name + ".bitmask", DType::kU8, {rows, static_cast<int64_t>(mask_row_bytes(sparse.matrix.columns))}});
  entries.push_back({name + ".compressed", sparse.array->dtype, {static_cast<int64_t>(sparse.nonzeros)}});
  entries.push_back({name + ".row_offsets", DType::kI64, {rows}});
}

void write_sparse(const SparseArray& sparse, const SafetensorsWriter& writer, OutputFile& file) {
  const std::string& name = sparse.array->name;
  const Matrix& matrix = sparse.matrix;
  const std::array<uint64_t, 2> shape = {matrix.rows, matrix.columns};
  writer.write(file, name + ".shape", 0, std::as_bytes(std::span(shape)));
  std::vector<int64_t> offsets;
  uint64_t masks_at = 0, values_at = 0;
  Packed packed;
  const auto flush = [&] {
    check_interrupt();
    writer.write(file, name + ".bitmask", masks_at, packed.mask);
    writer.write(file, name + ".compressed", values_at, packed.values);
    masks_at += packed.mask.size();
    values_at += packed.values.size();
    packed.mask.clear();
    packed.values.clear();
  };
  for (uint64_t row = 0; row < matrix.rows; ++row) {
    constexpr size_t kPiece = size_t{1} << 20;
    offsets.push_back(static_cast<int64_t>((values_at + packed.values.size()) / matrix.element_bytes));
    pack_row(matrix, row, packed);
    if (packed.mask.size() + packed.values.size() > kPiece) flush();
  }
  flush();
  writer.write(file, name + ".row_offsets", 0, std::as_bytes(std::span(offsets)));
}

// Where an array lies in the dense file.
struct Place {
  std::string name;
  uint64_t begin, size;
};

// Arrays that follow each other without overlap; others are left to the bytes around.
std::vector<Place> places_of(const CheckpointFiles& dense) {
  std::vector<Place> all, places;
  for (const Array& array : dense.arrays) {
    if (!array.strides.empty() || array.bytes.empty()) continue;
    all.push_back({array.name, static_cast<uint64_t>(array.bytes.data() - dense.files[0]->bytes().data()),
                   array.bytes.size()});
  }
  std::stable_sort(all.begin(), all.end(), [](const Place& a, const Place& b) { return a.begin < b.begin; });
  uint64_t end = 0;
  for (const Place& place : all) {
    if (place.begin < end) continue;
    places.push_back(place);
    end = place.begin + place.size;
  }
  return places;
}

// The entry of the metadata: a JSON object, a zero, and the bytes around the arrays.
std::string describe_dense(const CheckpointFiles& dense, const std::vector<Place>& places) {
  const Bytes bytes = dense.files[0]->bytes();
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string gaps;
  uint64_t at = 0;
  const auto add_gap = [&](uint64_t end) {
    gaps.append(reinterpret_cast<const char*>(bytes.data()) + at, end - at);
  };
  for (const Place& place : places) {
    add_gap(place.begin);
    list.push_back({place.name, place.begin});
    at = place.begin + place.size;
  }
  add_gap(bytes.size());
  const nlohmann::ordered_json object = {{"version", 1},
                                         {"format", name_of(dense.format)},
                                         {"size", bytes.size()},
                                         {"sha256", sha256_of_file(*dense.files[0])},
                                         {"arrays", list}};
  const std::string text = object.dump() + '\0' + gaps;
  std::string packed;
  pack_zstd(std::as_bytes(std::span(text)), [&packed](Bytes part) {
    packed.append(reinterpret_cast<const char*>(part.data()), part.size());
  });
  return to_base64(packed);
}

void write_plain(const Array& array, const SafetensorsWriter& writer, OutputFile& file) {
  constexpr size_t kPiece = size_t{1} << 20;
  for (size_t at = 0; at < array.bytes.size(); at += kPiece) {
    check_interrupt();
    writer.write(file, array.name, at, array.bytes.subspan(at, std::min(kPiece, array.bytes.size() - at)));
  }
}

}  // namespace

bool is_bitmask(const std::map<std::string, std::string>& metadata) { return metadata.contains(kDenseKey); }

std::string bitmask_obstacle(const CheckpointFiles& dense) {
  uint64_t in_arrays = 0;
  for (const Place& place : places_of(dense)) in_arrays += place.size;
  if (dense.files[0]->bytes().size() - in_arrays > kMaxGaps) {
    return fmt::format("it holds more than {} bytes that are no arrays of the model, such as an optimizer's",
                       kMaxGaps);
  }
  std::set<std::string> names;
  for (const Array& array : dense.arrays) names.insert(array.name);
  for (const Array& array : dense.arrays) {
    for (const char* part : {".shape", ".bitmask", ".compressed", ".row_offsets"}) {
      if (names.contains(array.name + part))
        return fmt::format("it has a tensor '{}{}' already", array.name, part);
    }
  }
  return "";
}

void write_bitmask(const CheckpointFiles& dense, OutputFile& file) {
  const MappedFile& map = *dense.files[0];
  const std::vector<Place> places = places_of(dense);
  std::map<std::string, std::string> metadata = dense.metadata;
  metadata[kDenseKey] = describe_dense(dense, places);
  std::vector<SafetensorsWriter::Entry> entries;
  std::vector<SparseArray> sparse;
  std::vector<const Array*> plain;
  for (const Array& array : dense.arrays) {
    check_interrupt();
    if (auto found = as_sparse(array)) {
      announce(*found, entries);
      sparse.push_back(*found);
    } else if (array.strides.empty()) {
      entries.push_back({array.name, array.dtype, array.shape});
      plain.push_back(&array);
    }  // what lies across others is kept by the bytes around
    map.drop(array.bytes);
  }
  const SafetensorsWriter writer(std::move(entries), std::move(metadata));
  writer.write_header(file);
  for (const SparseArray& item : sparse) {
    write_sparse(item, writer, file);
    map.drop(item.array->bytes);
  }
  for (const Array* array : plain) {
    write_plain(*array, writer, file);
    map.drop(array->bytes);
  }
}

}  // namespace mcompress
