#include "module_maker.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/jit/frontend/resolver.h>

namespace mcompress {

namespace {

using torch::jit::Module;

// oneDNN's and FBGEMM's operators are no part of torch's own name space in TorchScript source.
struct KernelResolver : torch::jit::NativeResolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(const std::string& name,
                                                         torch::jit::GraphFunction& function,
                                                         const torch::jit::SourceRange& place) override {
    if (name == "onednn" || name == "quantized") return std::make_shared<torch::jit::BuiltinModule>(name);
    return NativeResolver::resolveValue(name, function, place);
  }
};

Module make_class(const Replacement& replacement, const std::vector<std::string>& methods) {
  Module module(c10::QualifiedName("__torch__.mcompress." + replacement.name),
                std::make_shared<torch::jit::CompilationUnit>(), true);
  if (!module.hasattr("training")) module.register_attribute("training", c10::BoolType::get(), false);
  for (const auto& [name, tensor] : replacement.buffers) module.register_buffer(name, tensor);
  for (const auto& [name, value] : replacement.attributes) {
    // A tensor's own type would fix its sizes.
    const c10::TypePtr type = value.isTensor() ? c10::TypePtr(c10::TensorType::get()) : value.type();
    module.register_attribute(name, type, value);
  }
  const auto resolver = std::make_shared<KernelResolver>();
  if (!replacement.pack.empty()) module.define(replacement.pack, resolver);
  for (const std::string& method : methods)
    module.define(fmt::format(fmt::runtime(replacement.forward), method), resolver);
  return module;
}

}  // namespace

std::string with_state(const std::string& pack, const std::vector<StateField>& fields) {
  std::vector<std::string> types, values;
  std::string assignments;
  for (const StateField& field : fields) {
    assignments += fmt::format("    self.{} = state[{}]\n", field.name, types.size());
    types.push_back(field.type);
    values.push_back("self." + field.name);
  }
  return pack + fmt::format(R"(
def __getstate__(self) -> Tuple[{0}, bool]:
    return ({1}, self.training)

def __setstate__(self, state: Tuple[{0}, bool]) -> None:
{2}    self.training = state[{3}]
    self.pack()
)",
                            fmt::join(types, ", "), fmt::join(values, ", "), assignments, types.size());
}

Module ModuleMaker::make(const Replacement& replacement, const std::vector<std::string>& methods) {
  const auto [found, is_new] = first_of_class_.try_emplace(fmt::format(
      "{}\n{}\n{}\n{}", replacement.name, fmt::join(methods, " "), replacement.forward, replacement.pack));
  if (is_new) found->second = make_class(replacement, methods);
  Module module = found->second.copy();
  for (const auto& [name, tensor] : replacement.buffers) module.setattr(name, tensor);
  for (const auto& [name, value] : replacement.attributes) module.setattr(name, value);
  return module;
}

}  // namespace mcompress
