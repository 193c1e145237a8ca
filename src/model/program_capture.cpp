#include <map>
#include <set>

#include <fmt/ranges.h>

#include "layer_call.h"
#include "mcompress/base/error.h"
#include "mcompress/model/program.h"
#include "rebuild.h"
#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Module;

// Inserts mcompress::call(layer, value) before a node and returns what it gives.
torch::jit::Value* insert_call(torch::jit::Graph& graph, int64_t layer, torch::jit::Value* value,
                               torch::jit::Node* before) {
  const torch::jit::WithInsertPoint place(before);
  const auto call = c10::Symbol::fromQualString("mcompress::call");
  torch::jit::Node* made = graph.insertNode(graph.create(call, {graph.insertConstant(layer), value}));
  made->output()->setType(c10::TensorType::get());
  return made->output();
}

// Passes the input of the layer's weight through mcompress::call.
void observe_input(torch::jit::Graph& graph, int64_t layer) {
  const auto use = find_weight_use(graph);
  if (!use) return;
  auto* node = const_cast<torch::jit::Node*>(use->node);
  node->replaceInput(use->application.input,
                     insert_call(graph, layer, node->input(use->application.input), node));
}

// Passes what the module returns through mcompress::call.
void observe_output(Module& module, const std::string& name, int64_t layer) {
  bool found = false;
  for (auto* method : module.type()->methods()) {
    const std::string& method_name = method->name();  // a traced module used again has "forward1", ...
    if (!method_name.starts_with("forward") ||
        method_name.find_first_not_of("0123456789", std::string("forward").size()) != std::string::npos)
      continue;
    torch::jit::Graph& graph = *torch::jit::toGraphFunction(*method).graph();
    torch::jit::Value* output = graph.outputs().front();
    if (!output->type()->isSubtypeOf(*c10::TensorType::get()))
      throw bad_data("module '{}' gives a {} and no tensor", name, output->type()->str());
    graph.block()->replaceOutput(0, insert_call(graph, layer, output, graph.return_node()));
    found = true;
  }
  if (!found) throw bad_data("module '{}' has no forward method", name);
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

Module observe_outputs(const Module& program, const std::vector<std::string>& modules, size_t first) {
  Edits edits;
  for (size_t i = 0; i < modules.size(); ++i) {
    edits[modules[i]] = [&, i](Module& copy) {
      observe_output(copy, modules[i], static_cast<int64_t>(first + i));
    };
  }
  std::set<std::string> known;
  for (const auto& item : program.named_modules()) known.insert(item.name);
  for (const std::string& name : modules) {
    if (name.empty() || !known.contains(name)) {
      std::vector<std::string> top;
      for (const auto& child : program.named_children()) top.push_back(child.name);
      throw bad_data("the model has no module '{}'; those at its top are {}", name, fmt::join(top, ", "));
    }
  }
  return replace_modules(program, {}, edits);
}

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
