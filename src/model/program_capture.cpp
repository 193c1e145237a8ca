#include <map>

#include "layer_call.h"
#include "mcompress/model/program.h"
#include "rebuild.h"
#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Module;

// Passes the input of the layer's weight through mcompress::call.
void observe_input(torch::jit::Graph& graph, int64_t layer) {
  const auto use = find_weight_use(graph);
  if (!use) return;
  auto* node = const_cast<torch::jit::Node*>(use->node);
  const torch::jit::WithInsertPoint place(node);
  const auto call = c10::Symbol::fromQualString("mcompress::call");
  torch::jit::Value* input = node->input(use->application.input);
  torch::jit::Node* observed = graph.insertNode(graph.create(call, {graph.insertConstant(layer), input}));
  observed->output()->setType(c10::TensorType::get());
  node->replaceInput(use->application.input, observed->output());
}

// A copy of `program`, sharing its tensors, in which each layer's input passes through mcompress::call.
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

std::function<void(const at::Tensor&)> capture_inputs(const Module& program, const std::vector<Layer>& layers,
                                                      InputSink sink) {
  const LayerFunction function = [sink = std::move(sink)](size_t layer, const at::Tensor& input) {
    sink(layer, input);
    return input;
  };
  return [forward = program_forward(observe_layers(program, layers)), function](const at::Tensor& batch) {
    const LayerCalls calls(function);
    forward(batch);
  };
}

}  // namespace mcompress
