#include "mcompress/formats/bitmask.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <vector>

#include <nlohmann/json.hpp>
#include <openssl/evp.h>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/sha256.h"
#include "mcompress/formats/json.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/zstd.h"

namespace mcompress {

namespace {

constexpr const char* kDenseKey = "mcompress.dense";
constexpr uint64_t kMaxGaps = uint64_t{32} << 20;
constexpr uint64_t kBits = 8;

std::string to_base64(const std::string& bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(size));
  return text;
}

// Nothing where `text` is no base64.
std::optional<std::string> from_base64(const std::string& text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  std::string bytes(text.size() / 4 * 3, '\0');
  const int size =
      EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                      reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  if (size < 0) return std::nullopt;
  const size_t padding = static_cast<size_t>(text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0);
  bytes.resize(static_cast<size_t>(size) - padding);
  return bytes;
}

// A weight as rows of elements of one size.
struct Matrix {
  uint64_t rows, columns, element_bytes;
  Bytes bytes;
  Bytes row(uint64_t index) const {
    return bytes.subspan(index * columns * element_bytes, columns * element_bytes);
  }
};

uint64_t mask_row_bytes(uint64_t columns) { return columns / kBits + (columns % kBits == 0 ? 0 : 1); }

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
    if (gaps.size() + (end - at) > kMaxGaps) {
      throw bad_data(
          "'{}' holds more than {} bytes that are no arrays of the model, such as an optimizer's; save the "
          "state dict alone, or use --store dense",
          dense.files[0]->path(), kMaxGaps);
    }
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

namespace {

// What a bitmask file says of its dense form, checked in itself.
struct Dense {
  uint64_t size = 0;
  std::string sha256, gaps;
  std::vector<std::pair<std::string, uint64_t>> arrays;  // name and place, in order
};

Dense read_description(const std::map<std::string, std::string>& metadata, const std::string& path) {
  const std::string what = fmt::format("the entry '{}' of '{}'", kDenseKey, path);
  const auto packed = from_base64(metadata.at(kDenseKey));
  if (!packed) throw bad_data("{} is no base64", what);
  std::string text;
  constexpr uint64_t kMaxText = uint64_t{64} << 20;
  const uint64_t size = unpacked_zstd_bytes(std::as_bytes(std::span(*packed)), what);
  if (size > kMaxGaps + kMaxText)
    throw bad_data("{} unpacks to {} bytes, and at most {} are allowed", what, size, kMaxGaps + kMaxText);
  unpack_zstd(
      std::as_bytes(std::span(*packed)),
      [&text](Bytes part) { text.append(reinterpret_cast<const char*>(part.data()), part.size()); }, what);
  const size_t zero = text.find('\0');
  if (zero == std::string::npos) throw bad_data("{} is cut", what);
  const nlohmann::json object = parse_json(std::string_view(text).substr(0, zero), what);
  const auto is = [&](const char* key, nlohmann::json::value_t type) {
    return object.is_object() && object.contains(key) && object[key].type() == type;
  };
  using Type = nlohmann::json::value_t;
  if (!is("version", Type::number_unsigned) || object["version"] != 1)
    throw bad_data("{} has a version that is not known", what);
  if (!is("size", Type::number_unsigned) || !is("sha256", Type::string) || !is("arrays", Type::array))
    throw bad_data("{} lacks its size, sha256 or arrays", what);
  Dense dense{object["size"].get<uint64_t>(), object["sha256"].get<std::string>(), text.substr(zero + 1), {}};
  for (const nlohmann::json& item : object["arrays"]) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number_unsigned())
      throw bad_data("{} lists an array without name and place", what);
    dense.arrays.emplace_back(item[0].get<std::string>(), item[1].get<uint64_t>());
  }
  return dense;
}

// The four parts of a sparse array, checked against each other.
class SparseReader {
 public:
  SparseReader(const std::map<std::string, const Array*>& arrays, const std::string& name,
               const std::string& path)
      : what_(fmt::format("tensor '{}' of '{}'", name, path)) {
    const Array& shape = part(arrays, name + ".shape", DType::kI64);
    const Array& mask = part(arrays, name + ".bitmask", DType::kU8);
    const Array& offsets = part(arrays, name + ".row_offsets", DType::kI64);
    const auto found = arrays.find(name + ".compressed");
    if (found == arrays.end()) throw bad_data("{} has no '.compressed'", what_);
    const Array& values = *found->second;
    if (shape.shape != std::vector<int64_t>{2})
      throw bad_data("{} has a shape of other than two numbers", what_);
    std::memcpy(&rows_, shape.bytes.data(), sizeof(rows_));
    std::memcpy(&columns_, shape.bytes.data() + sizeof(rows_), sizeof(columns_));
    // The mask has a bit for each element, so that no count is larger than the file allows.
    const auto mask_bytes = checked_mul(rows_, mask_row_bytes(columns_));
    if (rows_ == 0 || columns_ == 0 || columns_ > INT64_MAX || !mask_bytes ||
        *mask_bytes != mask.bytes.size())
      throw bad_data("{} has a bitmask of {} bytes, which its shape [{}, {}] does not take", what_,
                     mask.bytes.size(), rows_, columns_);
    if (offsets.bytes.size() / sizeof(int64_t) != rows_)
      throw bad_data("{} has {} row offsets for {} rows", what_, offsets.bytes.size() / sizeof(int64_t),
                     rows_);
    element_bytes_ = size_of(values.dtype);
    if (!is_floating(values.dtype))
      throw bad_data("{} holds {}, no float type", what_, name_of(values.dtype));
    mask_ = mask.bytes;
    offsets_ = offsets.bytes;
    values_ = values.bytes;
  }

  void expand(const std::function<void(Bytes)>& write) const {
    uint64_t used = 0;
    for (uint64_t index = 0; index < rows_; ++index) {
      check_interrupt();
      uint64_t offset = 0;
      std::memcpy(&offset, offsets_.data() + index * sizeof(offset), sizeof(offset));
      if (offset != used)
        throw bad_data("{} begins row {} at {}, where its bitmask has {}", what_, index, offset, used);
      expand_row(index, used, write);
    }
    if (used * element_bytes_ != values_.size())
      throw bad_data("{} holds {} values, and its bitmask names {}", what_, values_.size() / element_bytes_,
                     used);
  }

 private:
  const Array& part(const std::map<std::string, const Array*>& arrays, const std::string& name,
                    DType dtype) const {
    const auto found = arrays.find(name);
    if (found == arrays.end() || found->second->dtype != dtype)
      throw bad_data("{} has no '{}' of {}", what_, name, name_of(dtype));
    return *found->second;
  }

  // Row by pieces of the mask, so that no buffer is as long as a row may claim to be.
  void expand_row(uint64_t index, uint64_t& used, const std::function<void(Bytes)>& write) const {
    constexpr uint64_t kPieceBytes = 4096;
    std::vector<std::byte> piece;
    const Bytes mask = mask_.subspan(index * mask_row_bytes(columns_), mask_row_bytes(columns_));
    for (uint64_t begin = 0; begin < mask.size(); begin += kPieceBytes) {
      const uint64_t first = begin * kBits;
      const uint64_t last = std::min(columns_, (begin + kPieceBytes) * kBits);
      piece.assign((last - first) * element_bytes_, std::byte{0});
      for (uint64_t byte = begin; byte < std::min<uint64_t>(mask.size(), begin + kPieceBytes); ++byte) {
        for (auto bits = std::to_integer<unsigned>(mask[byte]); bits != 0; bits &= bits - 1) {
          const uint64_t column = byte * kBits + static_cast<uint64_t>(std::countr_zero(bits));
          if (column >= columns_) throw bad_data("{} has a bit behind the end of row {}", what_, index);
          if (!fits(used * element_bytes_, element_bytes_, values_.size())) {
            throw bad_data("{} has more bits set than the {} values it holds", what_,
                           values_.size() / element_bytes_);
          }
          std::memcpy(piece.data() + (column - first) * element_bytes_,
                      values_.data() + used * element_bytes_, element_bytes_);
          ++used;
        }
      }
      write(piece);
    }
  }

  std::string what_;
  uint64_t rows_ = 0, columns_ = 0, element_bytes_ = 0;
  Bytes mask_, offsets_, values_;
};

}  // namespace

void expand_bitmask(Bytes bytes, const std::string& path, OutputFile& file) {
  const SafetensorsFile stored = read_safetensors(bytes, path);
  if (!is_bitmask(stored.metadata))
    throw bad_data("'{}' is not stored as a bitmask, so nothing is to expand", path);
  const Dense dense = read_description(stored.metadata, path);
  std::map<std::string, const Array*> arrays;
  for (const Array& array : stored.arrays) arrays[array.name] = &array;
  size_t gap_at = 0;
  const auto fill_to = [&](uint64_t end) {
    if (end < file.size() || end - file.size() > dense.gaps.size() - gap_at)
      throw bad_data("'{}' places its arrays where the dense file has none", path);
    const size_t size = end - file.size();
    file.write(std::as_bytes(std::span(dense.gaps).subspan(gap_at, size)));
    gap_at += size;
  };
  for (const auto& [name, place] : dense.arrays) {
    fill_to(place);
    const auto plain = arrays.find(name);
    if (plain != arrays.end()) {
      file.write(plain->second->bytes);
    } else {
      SparseReader(arrays, name, path).expand([&file](Bytes row) { file.write(row); });
    }
  }
  fill_to(dense.size);
  if (gap_at != dense.gaps.size()) throw bad_data("'{}' has bytes left over for its dense file", path);
  if (sha256_of_path(file.temporary()) != dense.sha256)
    throw bad_data("'{}' is damaged: its dense file has another SHA-256 than the one that was stored", path);
}

}  // namespace mcompress
