#include "mcompress/formats/tensor_place.h"

#include <algorithm>
#include <array>
#include <map>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"

namespace mcompress {

namespace {

using Kind = PickleValue::Kind;
using namespace std::string_view_literals;

// The types that torch.save names by themselves, over storages of plain bytes.
std::optional<DType> dtype_of_global(std::string_view global) {
  static const std::map<std::string_view, DType> kTypes = {
      {"torch.uint16", DType::kU16},         {"torch.uint32", DType::kU32},
      {"torch.uint64", DType::kU64},         {"torch.float8_e4m3fn", DType::kF8E4M3},
      {"torch.float8_e5m2", DType::kF8E5M2}, {"torch.float8_e8m0fnu", DType::kF8E8M0}};
  const auto found = kTypes.find(global);
  return found == kTypes.end() ? std::nullopt : std::optional(found->second);
}

std::vector<int64_t> read_integers(const PickleValue& tuple, const std::string& what) {
  std::vector<int64_t> integers;
  for (const PickleValue* item : tuple.items) {
    if (item->kind != Kind::kInt || item->integer < 0)
      throw bad_data("{} has a shape or stride that is no size", what);
    integers.push_back(item->integer);
  }
  return integers;
}

// The last element of the tensor lies inside its storage.
void check_extent(const TensorPlace& place, const std::string& what) {
  const auto elements = count_elements(place.shape);
  if (!elements) throw bad_data("{} has a shape whose size overflows", what);
  uint64_t last = place.offset;
  for (size_t i = 0; i < place.shape.size() && *elements > 0; ++i) {
    const auto reach =
        checked_mul(static_cast<uint64_t>(place.shape[i] - 1), static_cast<uint64_t>(place.strides[i]));
    const auto sum = reach ? checked_add(last, *reach) : std::nullopt;
    if (!sum) throw bad_data("{} has strides that overflow", what);
    last = *sum;
  }
  if (*elements > 0 && last >= place.storage_elements) {
    throw bad_data("{} reaches element {} of a storage that has {}", what, last, place.storage_elements);
  }
  // An expanded tensor (stride 0) has more elements than its storage; any number of them is a bomb.
  constexpr uint64_t kMaxExpanded = uint64_t{1} << 22;
  if (*elements > place.storage_elements && *elements > kMaxExpanded) {
    throw bad_data("{} has {} elements over a storage of {}", what, *elements, place.storage_elements);
  }
}

}  // namespace

std::optional<DType> dtype_of_storage(std::string_view global) {
  static const std::map<std::string_view, DType> kStorages = {{"torch.FloatStorage", DType::kF32},
                                                              {"torch.DoubleStorage", DType::kF64},
                                                              {"torch.HalfStorage", DType::kF16},
                                                              {"torch.BFloat16Storage", DType::kBF16},
                                                              {"torch.LongStorage", DType::kI64},
                                                              {"torch.IntStorage", DType::kI32},
                                                              {"torch.ShortStorage", DType::kI16},
                                                              {"torch.CharStorage", DType::kI8},
                                                              {"torch.ByteStorage", DType::kU8},
                                                              {"torch.BoolStorage", DType::kBool},
                                                              {"torch.UInt16Storage", DType::kU16},
                                                              {"torch.UInt32Storage", DType::kU32},
                                                              {"torch.UInt64Storage", DType::kU64},
                                                              {"torch.ComplexFloatStorage", DType::kC64},
                                                              {"torch.ComplexDoubleStorage", DType::kC128},
                                                              {"torch.Float8_e4m3fnStorage", DType::kF8E4M3},
                                                              {"torch.Float8_e5m2Storage", DType::kF8E5M2},
                                                              {"torch.Float8_e8m0fnuStorage", DType::kF8E8M0},
                                                              {"torch.storage.UntypedStorage", DType::kU8}};
  const auto found = kStorages.find(global);
  return found == kStorages.end() ? std::nullopt : std::optional(found->second);
}

bool is_call_of(const PickleValue& value, std::string_view global) {
  return value.kind == Kind::kCall && value.callee->text == global;
}

bool is_state_dict_global(std::string_view global) {
  static constexpr std::array kAllowed = {"collections.OrderedDict"sv,
                                          "torch._utils._rebuild_tensor_v2"sv,
                                          "torch._utils._rebuild_tensor"sv,
                                          "torch._utils._rebuild_tensor_v3"sv,
                                          "torch._utils._rebuild_parameter"sv,
                                          "torch._tensor._rebuild_from_type_v2"sv,
                                          "torch.Tensor"sv,
                                          "torch.nn.parameter.Parameter"sv,
                                          "torch.Size"sv,
                                          "torch.device"sv,
                                          "torch.serialization._get_layout"sv,
                                          "numpy.core.multiarray.scalar"sv,
                                          "numpy._core.multiarray.scalar"sv,
                                          "numpy.dtype"sv,
                                          "_codecs.encode"sv,
                                          "argparse.Namespace"sv};
  return std::find(kAllowed.begin(), kAllowed.end(), global) != kAllowed.end() ||
         dtype_of_storage(global).has_value() || dtype_of_global(global).has_value();
}

bool read_tensor_place(const PickleValue& value, TensorPlace& place, const std::string& what) {
  if (is_call_of(value, "torch._utils._rebuild_parameter")) {
    return !value.items.empty() && read_tensor_place(*value.items[0], place, what);
  }
  // PyTorch before 0.4 wrote _rebuild_tensor, whose first four arguments are the same. The third kind
  // names the type as its seventh argument, and its storage counts bytes.
  const bool typed_apart = is_call_of(value, "torch._utils._rebuild_tensor_v3");
  if (!typed_apart && !is_call_of(value, "torch._utils._rebuild_tensor_v2") &&
      !is_call_of(value, "torch._utils._rebuild_tensor")) {
    return false;
  }
  const auto& arguments = value.items;
  const bool shaped = arguments.size() >= 4 && arguments[0]->kind == Kind::kStorage &&
                      arguments[1]->kind == Kind::kInt && arguments[2]->kind == Kind::kTuple &&
                      arguments[3]->kind == Kind::kTuple;
  if (!shaped || arguments[1]->integer < 0) throw bad_data("{} is described wrongly", what);
  const auto& id = arguments[0]->items;  // 'storage', type, key, location, elements
  const bool identified = id.size() >= 5 && id[0]->kind == Kind::kText && id[0]->text == "storage" &&
                          id[1]->kind == Kind::kGlobal && id[2]->kind == Kind::kText &&
                          id[4]->kind == Kind::kInt;
  if (!identified || id[4]->integer < 0) throw bad_data("{} has a storage that is described wrongly", what);
  constexpr size_t kTypeAt = 6;
  if (typed_apart && (arguments.size() <= kTypeAt || arguments[kTypeAt]->kind != Kind::kGlobal))
    throw bad_data("{} is described wrongly", what);
  const std::string_view type = typed_apart ? arguments[kTypeAt]->text : id[1]->text;
  const auto dtype = typed_apart ? dtype_of_global(type) : dtype_of_storage(type);
  if (!dtype) throw bad_data("{} has the type {}, which is not read", what, type);
  const auto storage_size = static_cast<uint64_t>(id[4]->integer);
  place = {*dtype,
           read_integers(*arguments[2], what),
           read_integers(*arguments[3], what),
           std::string(id[2]->text),
           static_cast<uint64_t>(arguments[1]->integer),
           typed_apart ? storage_size / size_of(*dtype) : storage_size};
  if (place.shape.size() != place.strides.size())
    throw bad_data("{} has a shape and strides of different length", what);
  check_extent(place, what);
  return true;
}

}  // namespace mcompress
