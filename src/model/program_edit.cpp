#include <functional>

#include <ATen/core/dispatch/Dispatcher.h>

#include "mcompress/model/program.h"
#include "module_maker.h"
#include "program_group.h"
#include "rebuild.h"

namespace mcompress {

namespace {

using torch::jit::Module;

// Activations become uint8 with one range a row: x ~ q * width / 255 + low, so that
// y = width * (q * codes) * weight_scale / 255 + low * sum(weight row) + bias. Few operators, since each
// costs as much as a small product.
constexpr const char* kInt8Pack = R"(
def pack(self) -> None:
    self.packed = onednn.qlinear_prepack(self.weight, None)
    self.zero = torch.zeros_like(self.scale, dtype=4)
    self.half = torch.full([1], 0.5)
    self.step = self.scale / 255.0
    self.row_sum = torch.mul(torch.sum(self.weight, [1], dtype=6), self.scale)
)";

constexpr const char* kInt8Forward = R"(
def {}(self, x: Tensor) -> Tensor:
    low = torch.amin(x, [-1], True)
    width = torch.clamp_min(torch.amax(x, [-1], True) - low, 1e-30)
    inverse = torch.reciprocal(width)
    q = torch.addcmul(torch.addcmul(self.half, low, inverse, value=-255.0), x, inverse, value=255.0).to(dtype=0)
    y = onednn.qlinear_pointwise(q, 1.0, 0, self.packed, self.step, self.zero, None, 1.0, 0, 6, "none", [], "")
    return torch.addcmul(torch.addcmul(self.bias, low, self.row_sum), y, width)
)";

constexpr const char* kPortableLinear = R"(
def {}(self, x: Tensor) -> Tensor:
    return torch.linear(x, self.weight.to(dtype=6) * self.scale.unsqueeze(1), self.bias)
)";

constexpr const char* kDenseLinear = R"(
def {}(self, x: Tensor) -> Tensor:
    return torch.linear(x, self.weight.to(dtype=6), self.bias)
)";

// torch.ao's operator: one range a batch. The grid of pairs allows all 8 bits of the activations,
// where torch.ao gives one away.
constexpr const char* kFbgemmPack = R"(
def pack(self) -> None:
    scale = self.scale.to(dtype=7)
    codes = torch._make_per_channel_quantized_tensor(self.weight, scale, torch.zeros_like(scale, dtype=4), 0)
    self.packed = quantized.linear_prepack(codes, self.bias)
)";

constexpr const char* kFbgemmForward = R"(
def {}(self, x: Tensor) -> Tensor:
    return quantized.linear_dynamic(x, self.packed, False)
)";

constexpr const char* kInt8Embedding = R"(
def {}(self, x: Tensor) -> Tensor:
    return torch.embedding(self.weight, x).to(dtype=6) * torch.embedding(self.scale.unsqueeze(1), x)
)";

constexpr const char* kDenseEmbedding = R"(
def {}(self, x: Tensor) -> Tensor:
    return torch.embedding(self.weight, x).to(dtype=6)
)";

at::Tensor bias_or_zeros(const Layer& layer) {
  return layer.bias.defined() ? layer.bias.detach() : at::zeros({layer.weight.size(0)});
}

// torch.ao's packed parameters. Making them prints that qint8 is deprecated, which the user chose.
c10::IValue pack_for_fbgemm(const IntChannel& weight, const at::Tensor& bias) {
  struct Silent : c10::WarningHandler {
    void process(const c10::Warning& /*warning*/) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  const at::Tensor zero_points = at::zeros_like(weight.scale, at::kLong);
  const at::Tensor quantized =
      at::_make_per_channel_quantized_tensor(weight.codes, weight.scale.to(at::kDouble), zero_points, 0);
  const auto prepack = c10::Dispatcher::singleton().findSchemaOrThrow("quantized::linear_prepack", "");
  torch::jit::Stack stack{quantized, std::optional<at::Tensor>(bias)};
  prepack.callBoxed(stack);
  return stack.front();
}

const std::vector<StateField> kState = {{"weight", "Tensor"}, {"scale", "Tensor"}, {"bias", "Tensor"}};

Replacement int8_linear(const Layer& layer, const IntChannel& weight, Runtime runtime) {
  const at::Tensor bias = bias_or_zeros(layer);
  const std::map<std::string, at::Tensor> buffers = {
      {"weight", weight.codes}, {"scale", weight.scale}, {"bias", bias}};
  if (runtime == Runtime::kFbgemm)
    return {"FbgemmLinear",
            kFbgemmForward,
            with_state(kFbgemmPack, kState),
            buffers,
            {{"packed", pack_for_fbgemm(weight, bias)}}};
  if (runtime == Runtime::kPortable) return {"PortableInt8Linear", kPortableLinear, "", buffers};
  const at::Tensor later = at::empty({0});  // made when the file is loaded
  return {"Int8Linear",
          kInt8Forward,
          with_state(kInt8Pack, kState),
          buffers,
          {{"packed", later}, {"zero", later}, {"row_sum", later}, {"half", later}, {"step", later}}};
}

Replacement replacement_of(const Layer& layer, const CompressedWeight& weight, Runtime runtime) {
  const bool embedding = layer.kind == LayerKind::kEmbedding;
  if (const auto* dense = std::get_if<Dense>(&weight)) {
    if (embedding) return {"DenseEmbedding", kDenseEmbedding, "", {{"weight", dense->values}}};
    return {"DenseLinear", kDenseLinear, "", {{"weight", dense->values}, {"bias", bias_or_zeros(layer)}}};
  }
  if (const auto* group = std::get_if<IntGroup>(&weight)) return group_replacement(layer, *group);
  const auto& int8 = std::get<IntChannel>(weight);
  if (!embedding) return int8_linear(layer, int8, runtime_of(layer.weight, runtime));
  return {"Int8Embedding", kInt8Embedding, "", {{"weight", int8.codes}, {"scale", int8.scale}}};
}

}  // namespace

Module replace_layers(const Module& program, const std::vector<Layer>& layers,
                      const std::map<std::string, CompressedWeight>& weights, Runtime runtime) {
  ModuleMaker maker;
  std::map<std::string, Module> replacements;
  for (const Layer& layer : layers) {
    const auto weight = weights.find(layer.name);
    if (weight == weights.end()) continue;
    const Replacement replacement = replacement_of(layer, weight->second, runtime);
    replacements.emplace(layer.name, maker.make(replacement, layer.methods));
  }
  return replace_modules(program, replacements);
}

}  // namespace mcompress
