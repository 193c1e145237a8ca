#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "mcompress/model/followers.h"
#include "mcompress/model/static_layer.h"
#include "module_maker.h"
#include "program_source.h"

namespace mcompress {

namespace {

using torch::jit::Module;

// Rounded half up onto the grid: one operator with each of add, clamp and conversion.
std::string quantize_source(const StaticLayer& layer) {
  return fmt::format("    q = torch.add(self.offset, x, alpha=self.inverse).clamp_(0.0, {}.0)",
                     layer.input->top());
}

// The kernels lose the shape of an empty input, so that one goes another way.
std::string int8_forward(const Layer& layer, const StaticLayer& made) {
  const bool linear = layer.kind == LayerKind::kLinear;
  return fmt::format(
      "def {{}}(self, x: Tensor) -> Tensor:\n{}    if x.numel() == 0:\n        return {}\n{}.to(dtype=0)\n"
      "    return onednn.q{}_pointwise(q, self.input_scale, self.zero_point, self.packed, self.scale, "
      "self.zero, self.bias, {}1.0, 0, 6, \"{}\", [], \"\")\n",
      pad_source(layer), float_call(layer, "self.weight.to(dtype=6)"), quantize_source(made),
      linear ? "linear" : conv_name(layer), linear ? "" : slide(*layer.convolution) + ", ",
      made.relu ? "relu" : "none");
}

std::string portable_forward(const Layer& layer, const StaticLayer& made) {
  std::string source = "def {}(self, x: Tensor) -> Tensor:\n" + pad_source(layer);
  if (made.input) {
    source += quantize_source(made) + ".floor_()\n";
    source += "    x = q.sub_(self.zero_point).mul_(self.input_scale)\n";
  }
  const std::vector<int64_t> ones(static_cast<size_t>(layer.weight.dim() - 1), 1);
  source +=
      fmt::format("    w = self.weight.to(dtype=6) * self.scale.view([-1, {}])\n", fmt::join(ones, ", "));
  return source + fmt::format("    return {}{}\n", float_call(layer, "w"), made.relu ? ".relu_()" : "");
}

constexpr const char* kEmbeddingForward = R"(
def {}(self, x: Tensor) -> Tensor:
    return torch.embedding(self.weight, x).to(dtype=6) * torch.embedding(self.scale.unsqueeze(1), x)
)";

std::string prepack_source(const Layer& layer) {
  if (layer.kind == LayerKind::kLinear)
    return "    self.packed = onednn.qlinear_prepack(self.weight, None)\n";
  return fmt::format(
      "    self.packed = onednn.qconv_prepack(self.weight, self.scale, self.input_scale, self.zero_point, "
      "{}, "
      "None)\n",
      slide(*layer.convolution));
}

StaticBits bits_of(const StaticLayer& made) {
  return {made.weight.bits, made.input ? std::optional(made.input->bits) : std::nullopt};
}

// Of these alone two products can pass 16 bits.
bool are_bytes(const StaticBits& bits) {
  constexpr int kByte = 8;
  return bits.weight == kByte && bits.input == kByte;
}

Replacement replacement_of(const Layer& layer, const StaticLayer& made, Runtime wanted) {
  const bool kernel = static_runtime_of(layer, bits_of(made), wanted) == Runtime::kInt8;
  const bool embedding = layer.kind == LayerKind::kEmbedding;
  const bool packed = made.weight.bits < 8;
  Replacement result;
  result.name = fmt::format("{}Static{}{}", kernel ? "" : "Portable", made.weight.bits,
                            layer.kind == LayerKind::kLinear   ? "Linear"
                            : embedding                        ? "Embedding"
                            : layer.kind == LayerKind::kConv1d ? "Conv1d"
                                                               : "Conv2d");
  std::vector<StateField> state;
  std::string pack = "def pack(self) -> None:\n";
  const at::Tensor later = at::empty({0});  // made when the file is loaded
  result.buffers = {{"weight", made.weight.codes}, {"scale", made.weight.scale}};
  if (packed) {
    result.buffers["codes"] = pack_codes(made.weight.codes, made.weight.bits);
    result.attributes["shape"] = c10::IValue(made.weight.codes.sizes().vec());
    state = {{"codes", "Tensor"}, {"shape", "List[int]"}, {"scale", "Tensor"}};
    pack += unpack_source(made.weight.bits);
  } else {
    state = {{"weight", "Tensor"}, {"scale", "Tensor"}};
  }
  if (!embedding) {
    result.buffers["bias"] = made.bias.defined() ? made.bias : at::zeros({made.weight.codes.size(0)});
    state.push_back({"bias", "Tensor"});
  }
  if (made.input) {
    result.attributes["input_scale"] = made.input->scale;
    result.attributes["zero_point"] = made.input->zero_point;
    result.attributes["offset"] = later;
    result.attributes["inverse"] = 0.0;
    state.push_back({"input_scale", "float"});
    state.push_back({"zero_point", "int"});
    pack +=
        "    self.offset = torch.full([1], self.zero_point + 0.5)\n    self.inverse = 1.0 / "
        "self.input_scale\n";
  }
  if (kernel) {
    result.attributes["packed"] = later;
    result.attributes["zero"] = later;
    pack += prepack_source(layer) + "    self.zero = torch.zeros_like(self.scale, dtype=4)\n";
  }
  result.forward = embedding ? kEmbeddingForward
                   : kernel  ? int8_forward(layer, made)
                             : portable_forward(layer, made);
  if (packed || made.input) result.pack = with_state(pack, state);
  return result;
}

}  // namespace

at::Tensor round_input(const InputGrid& grid, const at::Tensor& input) {
  const auto top = static_cast<double>(grid.top());
  const at::Tensor codes =
      at::add(at::full({1}, static_cast<double>(grid.zero_point) + 0.5), input, 1.0 / grid.scale)
          .clamp_(0.0, top)
          .floor_();
  return codes.sub_(grid.zero_point).mul_(grid.scale);
}

at::Tensor run_static(const Layer& layer, const StaticLayer& made, const at::Tensor& input) {
  const at::Tensor weight =
      dequantize_rows(made.weight, 0, made.weight.codes.size(0)).view_as(made.weight.codes);
  const at::Tensor output =
      apply_layer(layer, made.input ? round_input(*made.input, input) : input, weight, made.bias);
  return made.relu ? output.relu() : output;
}

Runtime static_runtime_of(const Layer& layer, const StaticBits& bits, Runtime wanted) {
  if (layer.kind == LayerKind::kEmbedding || !bits.input) return Runtime::kPortable;
  const int64_t rows = layer.weight.size(0), row = layer.weight.numel() / std::max<int64_t>(1, rows);
  constexpr int64_t kMaxRow = 66'000;  // products of 127 and 255 that a 32-bit sum holds
  if (row > kMaxRow) return Runtime::kPortable;
  const bool one_channel =
      layer.convolution && layer.weight.size(1) == 1 && layer.convolution->groups != rows;
  return one_channel && are_bytes(bits) ? Runtime::kPortable : wanted;
}

bool needs_pairs(const Layer& layer, const StaticBits& bits, Runtime wanted) {
  return are_bytes(bits) && static_runtime_of(layer, bits, wanted) == Runtime::kInt8;
}

Module replace_static(const Module& program, const std::vector<Layer>& layers, const StaticLayers& made,
                      Runtime runtime) {
  ModuleMaker maker;
  std::map<std::string, Module> replacements;
  std::vector<bool> chosen(layers.size(), false);
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!made[i]) continue;
    chosen[i] = true;
    replacements.emplace(layers[i].name,
                         maker.make(replacement_of(layers[i], *made[i], runtime), layers[i].methods));
  }
  return drop_followers(program, layers, chosen, replacements);
}

}  // namespace mcompress
