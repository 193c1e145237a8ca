#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <vector>

#include <nlohmann/json.hpp>

#include "mcompress/formats/base64.h"
#include "bitmask_layout.h"
#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/sha256.h"
#include "mcompress/formats/bitmask.h"
#include "mcompress/formats/json.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/zstd.h"

namespace mcompress {

namespace {

// What a bitmask file says of its dense form, checked in itself.
struct Dense {
  uint64_t size = 0;
  std::string sha256, gaps;
  std::vector<std::pair<std::string, uint64_t>> arrays;  // name and place, in order
};

Dense read_description(const SafetensorsFile& stored, const std::string& path) {
  const std::string what = fmt::format("the entry '{}' of '{}'", kDenseKey, path);
  const auto packed = from_base64(stored.metadata.at(kDenseKey));
  if (!packed) throw bad_data("{} is no base64", what);
  std::string text;
  // No longer than the names of the arrays explain, each letter escaped.
  uint64_t max_text = uint64_t{64} << 10;
  for (const Array& array : stored.arrays) max_text += 64 + 6 * array.name.size();
  const uint64_t size = unpacked_zstd_bytes(std::as_bytes(std::span(*packed)), what);
  if (size > kMaxGaps + max_text)
    throw bad_data("{} unpacks to {} bytes, and at most {} are allowed", what, size, kMaxGaps + max_text);
  unpack_zstd(
      std::as_bytes(std::span(*packed)),
      [&text](Bytes part) { text.append(reinterpret_cast<const char*>(part.data()), part.size()); }, what);
  const size_t zero = text.find('\0');
  if (zero == std::string::npos || zero > max_text) throw bad_data("{} is cut", what);
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

  uint64_t dense_bytes() const { return rows_ * columns_ * element_bytes_; }

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
  const Dense dense = read_description(stored, path);
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
  std::set<std::string> written;
  for (const auto& [name, place] : dense.arrays) {
    if (!written.insert(name).second) throw bad_data("'{}' places '{}' twice", path, name);
    fill_to(place);
    const auto plain = arrays.find(name);
    const auto make_room = [&](uint64_t size) {
      if (!fits(file.size(), size, dense.size))
        throw bad_data("'{}' places its arrays where the dense file has none", path);
    };
    if (plain != arrays.end()) {
      make_room(plain->second->bytes.size());
      file.write(plain->second->bytes);
    } else {
      const SparseReader reader(arrays, name, path);
      make_room(reader.dense_bytes());
      reader.expand([&file](Bytes row) { file.write(row); });
    }
  }
  fill_to(dense.size);
  if (gap_at != dense.gaps.size()) throw bad_data("'{}' has bytes left over for its dense file", path);
  if (sha256_of_path(file.temporary()) != dense.sha256)
    throw bad_data("'{}' is damaged: its dense file has another SHA-256 than the one that was stored", path);
}

}  // namespace mcompress
