#include <map>
#include <mutex>

#include <torch/library.h>

#include "mcompress/model/program.h"
#include "rebuild.h"
#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Module;

// The sink of the run that is under way. A program may fork, so it is not one a thread.
struct Current {
  std::mutex mutex;
  const InputSink* sink = nullptr;
} current;

at::Tensor observe(int64_t layer, const at::Tensor& input) {
  const std::lock_guard lock(current.mutex);
  if (current.sink != nullptr) (*current.sink)(static_cast<size_t>(layer), input);
  return input;
}

// Passes the input of the layer's weight through mcompress::observe.
void observe_input(torch::jit::Graph& graph, int64_t layer) {
  const auto use = find_weight_use(graph);
  if (!use) return;
  auto* node = const_cast<torch::jit::Node*>(use->node);
  const torch::jit::WithInsertPoint place(node);
  const auto observe = c10::Symbol::fromQualString("mcompress::observe");
  torch::jit::Value* input = node->input(use->application.input);
  torch::jit::Node* observed = graph.insertNode(graph.create(observe, {graph.insertConstant(layer), input}));
  observed->output()->setType(c10::TensorType::get());
  node->replaceInput(use->application.input, observed->output());
}

// A copy of `program`, sharing its tensors, in which each layer's input passes through mcompress::observe.
Module observe_layers(const Module& program, const std::vector<Layer>& layers) {
  std::map<std::string, Module> modules, observed;
  for (const auto& item : program.named_modules()) modules.emplace(item.name, item.value);
  for (size_t i = 0; i < layers.size(); ++i) {
    const Module copy = copy_with(modules.at(layers[i].name), {});
    for (auto* method : copy.type()->methods())
      observe_input(*torch::jit::toGraphFunction(*method).graph(), static_cast<int64_t>(i));
    observed.emplace(layers[i].name, copy);
  }
  return replace_modules(program, observed);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mcompress, library) {
  library.def("observe(int layer, Tensor(a) input) -> Tensor(a)");
  library.impl("observe", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(observe));
}

std::function<void(const at::Tensor&)> capture_inputs(const Module& program, const std::vector<Layer>& layers,
                                                      InputSink sink) {
  return [forward = program_forward(observe_layers(program, layers)),
          sink = std::move(sink)](const at::Tensor& batch) {
    struct Guard {
      explicit Guard(const InputSink& sink) { set(&sink); }
      ~Guard() { set(nullptr); }
      static void set(const InputSink* sink) {
        const std::lock_guard lock(current.mutex);
        current.sink = sink;
      }
    } const guard(sink);
    forward(batch);
  };
}

}  // namespace mcompress
