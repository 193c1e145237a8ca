#include "mcompress/model/open_program.h"

#include <fmt/format.h>
#include <torch/csrc/jit/frontend/resolver.h>

#include "layer_call.h"
#include "mcompress/model/followers.h"
#include "mcompress/model/program.h"

namespace mcompress {

namespace {

using torch::jit::Module;

struct OwnOperators : torch::jit::NativeResolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(const std::string& name,
                                                         torch::jit::GraphFunction& function,
                                                         const torch::jit::SourceRange& place) override {
    if (name == "mcompress") return std::make_shared<torch::jit::BuiltinModule>(name);
    return NativeResolver::resolveValue(name, function, place);
  }
};

// A module that holds the number of the layer it stands for.
Module make_caller(const Layer& layer, size_t index) {
  Module module(c10::QualifiedName("__torch__.mcompress.Caller"),
                std::make_shared<torch::jit::CompilationUnit>(), true);
  if (!module.hasattr("training")) module.register_attribute("training", c10::BoolType::get(), false);
  module.register_attribute("layer", c10::IntType::get(), static_cast<int64_t>(index));
  for (const std::string& method : layer.methods) {
    module.define(
        fmt::format("def {}(self, x: Tensor) -> Tensor:\n    return mcompress.call(self.layer, x)\n", method),
        std::make_shared<OwnOperators>());
  }
  return module;
}

}  // namespace

std::string obstacle_to_open(const Layer& layer) {
  if (!layer.obstacle.empty()) return layer.obstacle;
  const bool unknown = is_convolution(layer.kind) && !layer.convolution;
  return unknown ? "the settings of its convolution are not constants" : "";
}

OpenProgram::OpenProgram(const Module& program, const std::vector<Layer>& layers,
                         const std::vector<bool>& opened, const std::vector<bool>& folded) {
  std::map<std::string, Module> callers;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (opened[i]) callers.emplace(layers[i].name, make_caller(layers[i], i));
  }
  program_ = drop_followers(program, layers, folded, callers);
}

at::Tensor OpenProgram::run(const at::Tensor& input, const LayerFunction& function) {
  const LayerCalls calls(function);
  return run_program(program_, input);
}

}  // namespace mcompress
