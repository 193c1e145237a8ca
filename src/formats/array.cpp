#include "mcompress/formats/array.h"

#include <array>

namespace mcompress {

namespace {

struct Info {
  DType dtype;
  const char* name;
  uint64_t size_bytes;
  bool floating;
};

// In the order of DType.
constexpr std::array<Info, 18> kInfos = {{{DType::kBool, "BOOL", 1, false},
                                          {DType::kU8, "U8", 1, false},
                                          {DType::kI8, "I8", 1, false},
                                          {DType::kI16, "I16", 2, false},
                                          {DType::kU16, "U16", 2, false},
                                          {DType::kF16, "F16", 2, true},
                                          {DType::kBF16, "BF16", 2, true},
                                          {DType::kI32, "I32", 4, false},
                                          {DType::kU32, "U32", 4, false},
                                          {DType::kF32, "F32", 4, true},
                                          {DType::kI64, "I64", 8, false},
                                          {DType::kU64, "U64", 8, false},
                                          {DType::kF64, "F64", 8, true},
                                          {DType::kF8E4M3, "F8_E4M3", 1, true},
                                          {DType::kF8E5M2, "F8_E5M2", 1, true},
                                          {DType::kF8E8M0, "F8_E8M0", 1, true},
                                          {DType::kC64, "C64", 8, false},
                                          {DType::kC128, "C128", 16, false}}};

const Info& info_of(DType dtype) { return kInfos[static_cast<size_t>(dtype)]; }

}  // namespace

uint64_t size_of(DType dtype) { return info_of(dtype).size_bytes; }
const char* name_of(DType dtype) { return info_of(dtype).name; }
bool is_floating(DType dtype) { return info_of(dtype).floating; }

std::optional<DType> dtype_named(std::string_view name) {
  for (const Info& info : kInfos) {
    if (name == info.name) return info.dtype;
  }
  return std::nullopt;
}

}  // namespace mcompress
