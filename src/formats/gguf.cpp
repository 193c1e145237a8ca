#include "mcompress/formats/gguf.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <set>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/text.h"

namespace mcompress {

namespace {

struct TypeInfo {
  GgufType type;
  const char* name;
  GgufBlock block;
};

constexpr std::array<TypeInfo, 11> kTypes = {{{GgufType::kF32, "F32", {1, 4}},
                                              {GgufType::kF16, "F16", {1, 2}},
                                              {GgufType::kQ4_0, "Q4_0", {32, 18}},
                                              {GgufType::kQ4_1, "Q4_1", {32, 20}},
                                              {GgufType::kQ5_0, "Q5_0", {32, 22}},
                                              {GgufType::kQ5_1, "Q5_1", {32, 24}},
                                              {GgufType::kQ8_0, "Q8_0", {32, 34}},
                                              {GgufType::kQ4_K, "Q4_K", {256, 144}},
                                              {GgufType::kQ5_K, "Q5_K", {256, 176}},
                                              {GgufType::kQ6_K, "Q6_K", {256, 210}},
                                              {GgufType::kBF16, "BF16", {1, 2}}}};

const TypeInfo* find_type(uint32_t id) {
  for (const TypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == id) return &info;
  }
  return nullptr;
}

const TypeInfo& info_of(GgufType type) { return *find_type(static_cast<uint32_t>(type)); }

// Ids of metadata values.
enum ValueType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

class Reader {
 public:
  Reader(Bytes bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  GgufFile read() {
    at_ = 4;  // behind the magic
    const auto version = number<uint32_t>();
    if (version != 2 && version != 3)
      throw fault(fmt::format("version {} of GGUF is not known; 2 and 3 are", version));
    const auto tensors = number<uint64_t>(), pairs = number<uint64_t>();
    GgufFile file;
    for (uint64_t i = 0; i < pairs; ++i) {
      const std::string key = text();
      if (key.empty()) throw fault("a key of the metadata is empty");
      if (!file.metadata.emplace(key, value(key)).second)
        throw fault(fmt::format("key '{}' is there twice", key));
    }
    const uint64_t alignment = alignment_of(file);
    std::vector<uint64_t> offsets;
    std::set<std::string> names;
    for (uint64_t i = 0; i < tensors; ++i) {
      file.tensors.push_back(tensor_info(offsets));
      if (!names.insert(file.tensors.back().name).second)
        throw fault(fmt::format("tensor '{}' is there twice", file.tensors.back().name));
    }
    place(file, offsets, alignment);
    return file;
  }

 private:
  Error fault(const std::string& what) const { return bad_data("GGUF file '{}': {}", path_, what); }

  Bytes take(uint64_t size) {
    if (!fits(at_, size, bytes_.size()))
      throw fault(fmt::format("it ends in the middle of its header, at byte {}", at_));
    const Bytes part = bytes_.subspan(at_, size);
    at_ += size;
    return part;
  }
  template <typename Number>
  Number number() {
    Number result;
    std::memcpy(&result, take(sizeof(Number)).data(), sizeof(Number));
    return result;
  }
  std::string text() { return std::string(text_of(take(number<uint64_t>()))); }

  // Whole numbers beyond int64 are none that a model has.
  int64_t whole(uint32_t type, const std::string& key) {
    switch (type) {
      case kUint8:
      case kBool: return number<uint8_t>();
      case kInt8: return number<int8_t>();
      case kUint16: return number<uint16_t>();
      case kInt16: return number<int16_t>();
      case kUint32: return number<uint32_t>();
      case kInt32: return number<int32_t>();
      case kInt64: return number<int64_t>();
      default: break;
    }
    const auto large = number<uint64_t>();
    if (large > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      throw fault(fmt::format("key '{}' is {}, which no model has", key, large));
    return static_cast<int64_t>(large);
  }
  double real(uint32_t type) { return type == kFloat32 ? number<float>() : number<double>(); }

  GgufValue value(const std::string& key) {
    const auto type = number<uint32_t>();
    if (type == kString) return text();
    if (type == kArray) return list(key);
    if (type == kFloat32 || type == kFloat64) return real(type);
    if (type <= kFloat64) return whole(type, key);
    throw fault(fmt::format("key '{}' has type {}, which is not known", key, type));
  }

  // An array grows as it is read, so that a count beyond the file reserves nothing.
  GgufValue list(const std::string& key) {
    const auto type = number<uint32_t>();
    const auto count = number<uint64_t>();
    const auto fill = [&](auto values, auto read) {
      for (uint64_t i = 0; i < count; ++i) values.push_back(read());
      return GgufValue(std::move(values));
    };
    if (type == kString) return fill(std::vector<std::string>(), [&] { return text(); });
    if (type == kFloat32 || type == kFloat64) return fill(std::vector<double>(), [&] { return real(type); });
    if (type <= kFloat64 && type != kArray)
      return fill(std::vector<int64_t>(), [&] { return whole(type, key); });
    throw fault(fmt::format("key '{}' is a list of type {}, which is not known", key, type));
  }

  uint64_t alignment_of(const GgufFile& file) const {
    constexpr uint64_t kDefault = 32;
    const auto found = file.metadata.find("general.alignment");
    if (found == file.metadata.end()) return kDefault;
    const auto* given = std::get_if<int64_t>(&found->second);
    if (given == nullptr || *given < 1 || (*given & (*given - 1)) != 0)
      throw fault("general.alignment is not a power of two");
    return static_cast<uint64_t>(*given);
  }

  GgufTensor tensor_info(std::vector<uint64_t>& offsets) {
    GgufTensor tensor;
    tensor.name = text();
    const auto dimensions = number<uint32_t>();
    constexpr uint32_t kMost = 4;
    if (dimensions > kMost)
      throw fault(
          fmt::format("tensor '{}' has {} dimensions; up to {} are known", tensor.name, dimensions, kMost));
    for (uint32_t i = 0; i < dimensions; ++i) {
      const auto size = number<uint64_t>();
      if (size == 0 || size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        throw fault(fmt::format("tensor '{}' has a dimension of {}", tensor.name, size));
      tensor.shape.insert(tensor.shape.begin(),
                          static_cast<int64_t>(size));  // the file has the innermost first
    }
    const auto id = number<uint32_t>();
    const TypeInfo* info = find_type(id);
    if (info == nullptr)
      throw fault(
          fmt::format("tensor '{}' has type {}, which is not read; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, "
                      "Q8_0, Q4_K, Q5_K and Q6_K are",
                      tensor.name, id));
    tensor.type = info->type;
    offsets.push_back(number<uint64_t>());
    return tensor;
  }

  // Tensors lie one behind the other, each padded to the alignment.
  void place(GgufFile& file, const std::vector<uint64_t>& offsets, uint64_t alignment) const {
    const auto padded = [&](uint64_t size) -> std::optional<uint64_t> {
      const auto sum = checked_add(size, alignment - 1);
      return sum ? std::optional(*sum / alignment * alignment) : std::nullopt;
    };
    const std::optional<uint64_t> start = padded(at_);
    std::optional<uint64_t> next = 0;
    for (size_t i = 0; i < file.tensors.size(); ++i) {
      GgufTensor& tensor = file.tensors[i];
      const GgufBlock block = block_of(tensor.type);
      const auto count = count_elements(tensor.shape);
      const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
      if (row % block.values != 0)
        throw fault(fmt::format("tensor '{}' has rows of {}, which blocks of {} do not divide", tensor.name,
                                row, block.values));
      const auto size =
          count ? checked_mul(*count / static_cast<uint64_t>(block.values), block.bytes) : std::nullopt;
      if (!next || offsets[i] != *next)
        throw fault(fmt::format("tensor '{}' does not begin where the one before it ends", tensor.name));
      const auto begin = checked_add(*start, *next);
      if (!size || !begin || !fits(*begin, *size, bytes_.size()))
        throw fault(
            fmt::format("tensor '{}' reaches beyond the end of the file, which is cut off", tensor.name));
      tensor.bytes = bytes_.subspan(*begin, *size);
      const auto end = padded(*size);
      next = end ? checked_add(*next, *end) : std::nullopt;
    }
  }

  Bytes bytes_;
  const std::string& path_;
  uint64_t at_ = 0;
};

}  // namespace

const char* name_of(GgufType type) { return info_of(type).name; }
GgufBlock block_of(GgufType type) { return info_of(type).block; }

bool looks_like_gguf(Bytes bytes) { return bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0; }

const GgufTensor* find_tensor(const GgufFile& file, std::string_view name) {
  const auto found = std::find_if(file.tensors.begin(), file.tensors.end(),
                                  [&](const GgufTensor& tensor) { return tensor.name == name; });
  return found == file.tensors.end() ? nullptr : &*found;
}

GgufFile read_gguf(Bytes bytes, const std::string& path) {
  if (!looks_like_gguf(bytes)) throw bad_data("'{}' is no GGUF file", path);
  return Reader(bytes, path).read();
}

}  // namespace mcompress
