#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "mcompress/model/program.h"

namespace mcompress {

namespace {

using c10::ClassTypePtr;
using torch::jit::Module;

constexpr const char* kGetState = "__getstate__";
constexpr const char* kSetState = "__setstate__";
constexpr const char* kPack = "_mcompress_pack";
constexpr const char* kUnpack = "_mcompress_unpack";

// A weight is saved as its mask, eight weights a byte and lowest bit first, and the values whose bits are
// not those of +0; with an empty mask it is saved as it is, where that is smaller.
constexpr const char* kMethods = R"(
def _mcompress_pack(self) -> Tuple[Tensor, Tensor, List[int], bool]:
    weight = self.weight.detach()
    flat = weight.reshape([-1])
    kept = torch.logical_or(torch.ne(flat, 0), torch.signbit(flat))
    values = torch.masked_select(flat, kept)
    dense = torch.numel(flat) * torch.element_size(flat)
    sparse = torch.numel(values) * torch.element_size(flat) + torch.numel(flat) // 8 + 256
    if sparse >= dense or not weight.is_contiguous():
        return (torch.zeros([0], dtype=0), self.weight, [0], self.weight.requires_grad)
    padding = (8 - torch.numel(flat) % 8) % 8
    bits = torch.constant_pad_nd(kept.to(dtype=0), [0, padding]).view([-1, 8])
    mask = torch.sum(torch.bitwise_left_shift(bits, torch.arange(8, dtype=0)), [1], dtype=0)
    return (mask, values, weight.size(), self.weight.requires_grad)

def _mcompress_unpack(self, mask: Tensor, values: Tensor, shape: List[int], trainable: bool) -> Tensor:
    if torch.numel(mask) == 0:
        return values
    bits = torch.bitwise_and(torch.bitwise_right_shift(mask.unsqueeze(1), torch.arange(8, dtype=0)), 1)
    weight = torch.zeros(shape, dtype=values.dtype)
    kept = bits.view([-1]).slice(0, 0, torch.numel(weight)).to(dtype=11).view(shape)
    fits = (torch.numel(weight) + 7) // 8 == torch.numel(mask) and int(torch.sum(kept)) == torch.numel(values)
    assert fits, "a bitmask does not fit its values"
    return weight.masked_scatter(kept, values).requires_grad_(trainable)
)";

// __getstate__ and __setstate__ that hand on every other attribute as it is.
std::string state_source(const c10::ClassType& type) {
  std::vector<std::string> types, reads;
  std::string writes;
  constexpr size_t kPacked = 4;
  for (size_t i = 0; i < type.numAttributes(); ++i) {
    const std::string& name = type.getAttributeName(i);
    if (name == "weight") continue;
    writes += fmt::format("    self.{} = state[{}]\n", name, kPacked + types.size());
    types.push_back(type.getAttribute(i)->annotation_str());
    reads.push_back("self." + name);
  }
  const std::string all = fmt::format("Tuple[Tensor, Tensor, List[int], bool{}{}]", types.empty() ? "" : ", ",
                                      fmt::join(types, ", "));
  return fmt::format(
      "def __getstate__(self) -> {0}:\n"
      "    packed = self._mcompress_pack()\n"
      "    return (packed[0], packed[1], packed[2], packed[3]{1}{2})\n\n"
      "def __setstate__(self, state: {0}) -> None:\n"
      "    self.weight = self._mcompress_unpack(state[0], state[1], state[2], state[3])\n{3}",
      all, reads.empty() ? "" : ", ", fmt::join(reads, ", "), writes);
}

// Storages that more than one tensor of the program uses.
std::set<const void*> shared_storages(const Module& program) {
  std::map<const void*, int> uses;
  for (const Module& module : program.modules()) {
    for (size_t i = 0; i < module.type()->numAttributes(); ++i) {
      const c10::IValue& value = module._ivalue()->getSlot(i);
      if (value.isTensor() && value.toTensor().has_storage())
        ++uses[value.toTensor().storage().unsafeGetStorageImpl()];
    }
  }
  std::set<const void*> shared;
  for (const auto& [storage, count] : uses) {
    if (count > 1) shared.insert(storage);
  }
  return shared;
}

bool is_shared(const at::Tensor& weight, const std::set<const void*>& shared) {
  return shared.contains(weight.storage().unsafeGetStorageImpl()) ||
         weight.storage().nbytes() != weight.nbytes();
}

// A type whose name in source needs nothing else.
bool is_plain(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::StringType:
    case c10::TypeKind::NoneType: return true;
    case c10::TypeKind::TupleType:
      if (type->castRaw<c10::TupleType>()->name()) return false;
      [[fallthrough]];
    case c10::TypeKind::OptionalType:
    case c10::TypeKind::ListType:
    case c10::TypeKind::DictType: {
      const auto inner = type->containedTypes();
      return std::all_of(inner.begin(), inner.end(), is_plain);
    }
    default: return false;
  }
}

// What keeps the class of a module from saving its weight in another form.
bool can_be_sparse(const Module& module) {
  const ClassTypePtr type = module.type();
  for (const char* method : {kGetState, kSetState, kPack, kUnpack}) {
    if (type->findMethod(method) != nullptr) return false;
  }
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    if (!is_plain(type->getAttribute(i))) return false;
  }
  return true;
}

}  // namespace

bool make_sparse(const Module& program, const std::set<std::string>& layers) {
  const std::set<const void*> shared = shared_storages(program);
  std::map<ClassTypePtr, Module> classes;
  std::set<ClassTypePtr> refused;
  for (const auto& item : program.named_modules()) {
    const ClassTypePtr type = item.value.type();
    if (!layers.contains(item.name) || !can_be_sparse(item.value) ||
        is_shared(item.value.attr("weight").toTensor(), shared)) {
      refused.insert(type);
    } else {
      classes.emplace(type, item.value);
    }
  }
  bool any = false;
  for (auto& [type, module] : classes) {
    if (refused.contains(type)) continue;
    module.define(kMethods + state_source(*type));
    any = true;
  }
  return any;
}

bool make_dense(const Module& program) {
  std::set<ClassTypePtr> classes;
  for (const Module& module : program.modules()) {
    const auto has = [&](const char* method) { return module.type()->findMethod(method) != nullptr; };
    if (has(kPack) && has(kUnpack) && has(kGetState) && has(kSetState)) classes.insert(module.type());
  }
  for (const ClassTypePtr& type : classes) {
    for (const char* method : {kGetState, kSetState, kPack, kUnpack}) type->unsafeRemoveMethod(method);
  }
  return !classes.empty();
}

}  // namespace mcompress
