#include "mcompress/formats/safetensors.h"

#include <algorithm>
#include <cstring>

#include <nlohmann/json.hpp>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/text.h"
#include "mcompress/formats/json.h"

namespace mcompress {

namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr uint64_t kPrefix = 8;

uint64_t header_size(Bytes bytes) {
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), kPrefix);
  return size;
}

bool is_utf8(const std::string& text) {
  try {
    json(text).dump();
    return true;
  } catch (const json::type_error&) {
    return false;
  }
}

// A list of non-negative integers that fit int64.
std::vector<int64_t> read_numbers(const json& list, const std::string& what) {
  if (!list.is_array()) throw bad_data("{} is not a list", what);
  std::vector<int64_t> numbers;
  for (const json& item : list) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > INT64_MAX) {
      throw bad_data("{} holds {}, which is no non-negative integer", what, item.dump());
    }
    numbers.push_back(item.get<int64_t>());
  }
  return numbers;
}

std::map<std::string, std::string> read_metadata(const json& object, const std::string& path) {
  if (!object.is_object()) throw bad_data("'{}': __metadata__ is not an object", path);
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.items()) {
    if (!value.is_string()) throw bad_data("'{}': __metadata__ '{}' is not a string", path, key);
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

Array read_entry(const std::string& name, const json& entry, Bytes data, const std::string& path) {
  const std::string what = fmt::format("tensor '{}' of '{}'", name, path);
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!entry.is_object() || !entry.contains(key)) throw bad_data("{} has no {}", what, key);
  }
  if (entry.size() != 3) throw bad_data("{} has unknown keys beside dtype, shape, data_offsets", what);
  const json& dtype_name = entry["dtype"];
  const auto dtype = dtype_name.is_string() ? dtype_named(dtype_name.get<std::string>()) : std::nullopt;
  if (!dtype) throw bad_data("{} has the unknown dtype {}", what, dtype_name.dump());

  Array array{name, *dtype, read_numbers(entry["shape"], "shape of " + what), {}, {}};
  const auto offsets = read_numbers(entry["data_offsets"], "data_offsets of " + what);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    throw bad_data("{} has data_offsets that are no [begin, end]", what);
  }
  const auto begin = static_cast<uint64_t>(offsets[0]);
  const auto size = static_cast<uint64_t>(offsets[1]) - begin;
  if (!fits(begin, size, data.size())) {
    throw bad_data("{} ends at byte {} of the data, which has {}: the file is cut or damaged", what,
                   offsets[1], data.size());
  }
  const auto elements = count_elements(array.shape);
  const auto wanted = elements ? checked_mul(*elements, size_of(*dtype)) : std::nullopt;
  if (!wanted) throw bad_data("{} has a shape whose size overflows", what);
  if (*wanted != size) {
    throw bad_data("{} has {} bytes, but its shape and dtype ask for {}", what, size, *wanted);
  }
  array.bytes = data.subspan(begin, size);
  return array;
}

// Every byte of the data belongs to exactly one tensor.
void check_coverage(const std::vector<Array>& arrays, Bytes data, const std::string& path) {
  const std::byte* expected = data.data();
  for (const Array& array : arrays) {
    if (array.bytes.data() != expected) {
      throw bad_data(
          "tensor '{}' of '{}' starts at byte {} of the data, but the one before ends at {}: "
          "tensors overlap or leave a hole",
          array.name, path, array.bytes.data() - data.data(), expected - data.data());
    }
    expected += array.bytes.size();
  }
  const auto used = static_cast<uint64_t>(expected - data.data());
  if (used != data.size()) {
    throw bad_data("'{}' has {} bytes behind its last tensor", path, data.size() - used);
  }
}

}  // namespace

bool looks_like_safetensors(Bytes bytes) {
  return bytes.size() > kPrefix && header_size(bytes) <= kMaxHeader && (bytes[kPrefix] == std::byte{'{'});
}

SafetensorsFile read_safetensors(Bytes bytes, const std::string& path) {
  if (bytes.size() < kPrefix) {
    throw bad_data("'{}' has {} bytes, too few for a safetensors file", path, bytes.size());
  }
  const uint64_t size = header_size(bytes);
  if (size > kMaxHeader) {
    throw bad_data("'{}' announces a header of {} bytes; at most {} are allowed", path, size, kMaxHeader);
  }
  if (!fits(kPrefix, size, bytes.size())) {
    throw bad_data("'{}' announces a header of {} bytes, but has only {}: the file is cut", path, size,
                   bytes.size() - kPrefix);
  }
  const std::string_view text = text_of(bytes.subspan(kPrefix, size));
  if (!text.starts_with('{')) throw bad_data("header of '{}' does not begin with '{{'", path);
  const json header = parse_json(text, fmt::format("header of '{}'", path));

  SafetensorsFile file;
  const Bytes data = bytes.subspan(kPrefix + size);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      file.metadata = read_metadata(entry, path);
    } else {
      file.arrays.push_back(read_entry(name, entry, data, path));
    }
  }
  std::stable_sort(file.arrays.begin(), file.arrays.end(), [](const Array& a, const Array& b) {
    return std::pair(a.bytes.data(), a.bytes.size()) < std::pair(b.bytes.data(), b.bytes.size());
  });
  check_coverage(file.arrays, data, path);
  return file;
}

SafetensorsWriter::SafetensorsWriter(std::vector<Entry> entries,
                                     std::map<std::string, std::string> metadata) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(-static_cast<int64_t>(size_of(a.dtype)), a.name) <
           std::pair(-static_cast<int64_t>(size_of(b.dtype)), b.name);
  });
  nlohmann::ordered_json header;
  metadata["format"] = "pt";  // older readers refuse a file without it
  header["__metadata__"] = metadata;
  for (const Entry& entry : entries) {
    if (!is_utf8(entry.name))
      throw bad_data("tensor '{}' has a name that is not UTF-8, which safetensors needs; rename it",
                     entry.name);
    if (entry.dtype == DType::kC128)
      throw bad_data("tensor '{}' is complex128, which safetensors does not hold", entry.name);
    const uint64_t size = count_elements(entry.shape).value() * size_of(entry.dtype);
    header[entry.name] = {{"dtype", name_of(entry.dtype)},
                          {"shape", entry.shape},
                          {"data_offsets", {data_bytes_, data_bytes_ + size}}};
    offsets_[entry.name] = data_bytes_;
    data_bytes_ += size;
  }
  std::string text = header.dump();
  text.append((kPrefix - text.size() % kPrefix) % kPrefix, ' ');
  const uint64_t size = text.size();
  header_.assign(reinterpret_cast<const char*>(&size), kPrefix);
  header_ += text;
  for (auto& [name, offset] : offsets_) offset += header_.size();
}

void SafetensorsWriter::write_header(OutputFile& file) const {
  file.write(std::as_bytes(std::span(header_)));
}

void SafetensorsWriter::write(OutputFile& file, const std::string& name, uint64_t offset, Bytes bytes) const {
  file.write_at(offsets_.at(name) + offset, bytes);
}

}  // namespace mcompress
