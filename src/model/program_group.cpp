#include "program_group.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "program_source.h"

namespace mcompress {

namespace {

// Codes and zero points are stored less 2^(bits - 1), as what unpacks them takes codes. Groups in order are
// told by their size.
std::string pack_source(int bits, bool in_order) {
  const char* groups = in_order ? "torch.arange(codes.size(1)) // self.group_size" : "self.groups";
  return "def pack(self) -> None:" + unpack_source(bits) +
         fmt::format(R"(
    codes = self.weight.to(dtype=6).view([self.shape[0], -1])
    groups = {}
    zero = torch.index_select(self.zero.to(dtype=6), 1, groups)
    scale = torch.index_select(self.scale.to(dtype=6), 1, groups)
    self.weight = ((codes - zero) * scale).view(self.shape)
)",
                     groups);
}

// The size of groups that are neighbours; 0 where they are not.
int64_t size_in_order(const at::Tensor& groups) {
  const int64_t channels = groups.size(0), size = (groups == 0).sum().item<int64_t>();
  if (size == 0) return 0;
  return groups.equal(at::arange(channels).div(size, "floor")) ? size : 0;
}

}  // namespace

Replacement group_replacement(const Layer& layer, const IntGroup& weight) {
  const int64_t lowest = int64_t{1} << (weight.bits - 1), size = size_in_order(weight.groups);
  const auto lowered = [&](const at::Tensor& codes) { return (codes.to(at::kLong) - lowest).to(at::kChar); };
  Replacement result;
  result.name = fmt::format("Group{}{}", weight.bits,
                            layer.kind == LayerKind::kLinear   ? "Linear"
                            : layer.kind == LayerKind::kConv1d ? "Conv1d"
                                                               : "Conv2d");
  const at::Tensor codes = lowered(weight.codes);
  result.buffers = {{"weight", codes},
                    {"codes", pack_codes(codes, weight.bits)},
                    {"scale", weight.scale},
                    {"zero", lowered(weight.zero)},
                    {"bias", layer.bias.defined() ? layer.bias.detach() : at::zeros({layer.weight.size(0)})}};
  result.attributes["shape"] = c10::IValue(layer.weight.sizes().vec());
  std::vector<StateField> state = {{"codes", "Tensor"},
                                   {"shape", "List[int]"},
                                   {"scale", "Tensor"},
                                   {"zero", "Tensor"},
                                   {"bias", "Tensor"}};
  if (size > 0) {
    result.attributes["group_size"] = size;
    state.push_back({"group_size", "int"});
  } else {
    result.buffers["groups"] = weight.groups.to(at::kInt);
    state.push_back({"groups", "Tensor"});
  }
  result.pack = with_state(pack_source(weight.bits, size > 0), state);
  result.forward = "def {}(self, x: Tensor) -> Tensor:\n" + pad_source(layer) +
                   fmt::format("    return {}\n", float_call(layer, "self.weight"));
  return result;
}

}  // namespace mcompress
