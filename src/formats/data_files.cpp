#include "mcompress/formats/data_files.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/text.h"

namespace mcompress {

namespace {

constexpr std::string_view kNpyMagic = "\x93NUMPY";

// The value behind `'key':` in the Python dict literal of an .npy header.
std::string_view npy_value(std::string_view header, std::string_view key, const std::string& path) {
  const size_t at = header.find(fmt::format("'{}':", key));
  if (at == std::string_view::npos) throw bad_data("header of '{}' has no '{}'", path, key);
  std::string_view value = header.substr(at + key.size() + 3);
  value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
  return value;
}

std::vector<int64_t> parse_npy_shape(std::string_view text, const std::string& path) {
  const size_t close = text.find(')');
  if (!text.starts_with('(') || close == std::string_view::npos)
    throw bad_data("header of '{}' has no shape", path);
  std::vector<int64_t> shape;
  int64_t number = 0;
  bool has_digits = false;
  for (const char c : text.substr(1, close)) {
    if (c >= '0' && c <= '9') {
      if (number > INT64_MAX / 10 - 1) throw bad_data("'{}' has a shape whose size overflows", path);
      number = number * 10 + (c - '0');
      has_digits = true;
    } else if (c == ',' || c == ')') {
      if (has_digits) shape.push_back(number);
      number = 0;
      has_digits = false;
    } else if (c != ' ') {
      throw bad_data("header of '{}' has the shape '{}'", path, text.substr(0, close + 1));
    }
  }
  return shape;
}

DType parse_npy_dtype(std::string_view text, const std::string& path) {
  static const std::map<std::string_view, DType> kTypes = {
      {"|u1", DType::kU8},  {"|i1", DType::kI8},  {"|b1", DType::kBool}, {"<u2", DType::kU16},
      {"<i2", DType::kI16}, {"<i4", DType::kI32}, {"<u4", DType::kU32},  {"<i8", DType::kI64},
      {"<u8", DType::kU64}, {"<f2", DType::kF16}, {"<f4", DType::kF32},  {"<f8", DType::kF64}};
  const size_t close = text.size() > 1 ? text.find(text[0], 1) : std::string_view::npos;
  const std::string_view name = close == std::string_view::npos ? text : text.substr(1, close - 1);
  const auto found = kTypes.find(name);
  if (found == kTypes.end()) {
    throw bad_data(
        "'{}' has the dtype '{}'; little-endian numbers are read, save with astype('<f4') or the like", path,
        name);
  }
  return found->second;
}

}  // namespace

bool looks_like_idx(Bytes bytes) {
  return bytes.size() >= 4 && bytes[0] == std::byte{0} && bytes[1] == std::byte{0} &&
         bytes[2] >= std::byte{8} && bytes[2] <= std::byte{14} && bytes[3] >= std::byte{1} &&
         bytes[3] <= std::byte{8};
}

Array read_idx(Bytes bytes, const std::string& path) {
  if (!looks_like_idx(bytes)) throw bad_data("'{}' is no IDX file", path);
  const auto type = std::to_integer<int>(bytes[2]);
  if (type != 8 && type != 9) {
    throw bad_data("IDX file '{}' has the element type 0x{:02x}; only bytes (0x08, 0x09) are read", path,
                   type);
  }
  const auto rank = std::to_integer<size_t>(bytes[3]);
  const size_t header = 4 + 4 * rank;
  if (bytes.size() < header) throw bad_data("IDX file '{}' is cut in its header", path);
  Array array{path, type == 8 ? DType::kU8 : DType::kI8, {}, {}, {}};
  for (size_t i = 0; i < rank; ++i) {
    uint32_t dimension = 0;
    std::memcpy(&dimension, bytes.data() + 4 + 4 * i, sizeof(dimension));
    array.shape.push_back(__builtin_bswap32(dimension));
  }
  const auto size = count_elements(array.shape);
  if (!size || *size != bytes.size() - header) {
    throw bad_data("IDX file '{}' has {} bytes of data, but its header asks for {}", path,
                   bytes.size() - header, size ? std::to_string(*size) : "more than 2^64");
  }
  array.bytes = bytes.subspan(header);
  return array;
}

bool looks_like_cifar10(Bytes bytes) {
  if (bytes.empty() || bytes.size() % kCifarRow != 0) return false;
  for (size_t at = 0; at < bytes.size(); at += kCifarRow) {
    if (bytes[at] > std::byte{9}) return false;
  }
  return true;
}

bool looks_like_npy(Bytes bytes) {
  return bytes.size() > kNpyMagic.size() &&
         std::memcmp(bytes.data(), kNpyMagic.data(), kNpyMagic.size()) == 0;
}

Array read_npy(Bytes bytes, const std::string& path) {
  constexpr size_t kVersionAt = 6, kSizeAt = 8, kMaxHeader = 10'000;
  if (!looks_like_npy(bytes) || bytes.size() < kSizeAt + 4) throw bad_data("'{}' is no .npy file", path);
  const bool wide = bytes[kVersionAt] != std::byte{1};
  if (bytes[kVersionAt] > std::byte{3}) throw bad_data(".npy file '{}' has an unknown version", path);
  uint32_t size = 0;
  std::memcpy(&size, bytes.data() + kSizeAt, wide ? 4 : 2);
  const size_t begin = kSizeAt + (wide ? 4 : 2);
  if (size > kMaxHeader || !fits(begin, size, bytes.size()))
    throw bad_data(".npy file '{}' has a header that does not fit", path);
  const std::string_view header = text_of(bytes.subspan(begin, size));
  Array array{path, parse_npy_dtype(npy_value(header, "descr", path), path), {}, {}, {}};
  array.shape = parse_npy_shape(npy_value(header, "shape", path), path);
  if (npy_value(header, "fortran_order", path).starts_with("True")) {
    throw bad_data(".npy file '{}' is in Fortran order; save it with numpy.ascontiguousarray", path);
  }
  const auto elements = count_elements(array.shape);
  const auto wanted = elements ? checked_mul(*elements, size_of(array.dtype)) : std::nullopt;
  array.bytes = bytes.subspan(begin + size);
  if (!wanted || *wanted != array.bytes.size()) {
    throw bad_data(".npy file '{}' has {} bytes of data, but its header asks for {}", path,
                   array.bytes.size(), wanted ? std::to_string(*wanted) : "more than 2^64");
  }
  return array;
}

}  // namespace mcompress
