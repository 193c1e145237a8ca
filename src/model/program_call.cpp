#include <mutex>

#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/library.h>

#include "mcompress/base/error.h"
#include "mcompress/model/followers.h"
#include "mcompress/model/open_program.h"
#include "mcompress/model/program.h"

namespace mcompress {

namespace {

using torch::jit::Module;

// The function of the run that is under way. A program may fork, so it is not one a thread.
struct Current {
  std::recursive_mutex mutex;
  const LayerFunction* function = nullptr;
} current;

at::Tensor call(int64_t layer, const at::Tensor& input) {
  const std::lock_guard lock(current.mutex);
  if (current.function == nullptr)
    throw error(Exit::kInternal, "internal error: a layer runs outside its run");
  return (*current.function)(static_cast<size_t>(layer), input);
}

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

TORCH_LIBRARY_FRAGMENT(mcompress, library) {
  library.def("call(int layer, Tensor input) -> Tensor");
  library.impl("call", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(call));
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
  struct Guard {
    explicit Guard(const LayerFunction* function) { set(function); }
    ~Guard() { set(nullptr); }
    static void set(const LayerFunction* function) {
      const std::lock_guard lock(current.mutex);
      current.function = function;
    }
  } const guard(&function);
  return run_program(program_, input);
}

}  // namespace mcompress
