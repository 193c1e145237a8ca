#include <map>
#include <optional>

#include "follower_sites.h"
#include "mcompress/base/error.h"
#include "mcompress/model/program.h"
#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

std::optional<Application> application_by_operator(const std::string& name) {
  if (name == "aten::linear") return Application{LayerKind::kLinear, 0, 1, 2};
  if (name == "aten::conv1d") return Application{LayerKind::kConv1d, 0, 1, 2};
  if (name == "aten::conv2d" || name == "aten::_convolution" || name == "aten::_convolution_mode")
    return Application{LayerKind::kConv2d, 0, 1, 2};
  if (name == "aten::embedding") return Application{LayerKind::kEmbedding, 1, 0, {}};
  return std::nullopt;
}

// Scripted modules hand their weight on: an embedding to the function torch.nn.functional.embedding,
// a convolution to a method of its own.
std::optional<Application> application_by_node(const Node* node, const Value* self) {
  if (node->kind() == c10::prim::CallMethod && node->input(0) == self) {
    if (node->s(c10::attr::name) != "_conv_forward") return std::nullopt;
    return Application{LayerKind::kConv2d, 1, 2, 3};
  }
  if (node->kind() == c10::aten::_convolution) {
    constexpr size_t kTransposed = 6;  // whose weight has inputs and outputs exchanged
    const auto transposed = torch::jit::toIValue(node->input(kTransposed));
    if (!transposed || !transposed->isBool() || transposed->toBool()) return std::nullopt;
  }
  if (node->kind() != c10::prim::CallFunction) return application_by_operator(node->kind().toQualString());
  if (called_function(node) != "embedding") return std::nullopt;
  constexpr size_t kMaxNorm = 4;  // function, input, weight, padding_idx, max_norm
  const auto max_norm = torch::jit::toIValue(node->input(kMaxNorm));
  if (!max_norm || !max_norm->isNone()) return std::nullopt;
  return Application{LayerKind::kEmbedding, 1, 2, {}};
}

// What a module of torch.nn is by its class, for those whose methods do not tell.
std::optional<LayerKind> kind_of_class(const Module& module) {
  const std::string name = module.type()->name()->name();
  if (name == "Linear") return LayerKind::kLinear;
  if (name == "Conv1d") return LayerKind::kConv1d;
  if (name == "Conv2d") return LayerKind::kConv2d;
  if (name == "Embedding") return LayerKind::kEmbedding;
  return std::nullopt;
}

bool is_attribute_of(const Value* value, const Value* self, const std::string& name) {
  return value->node()->kind() == c10::prim::GetAttr && value->node()->input(0) == self &&
         value->node()->s(c10::attr::name) == name;
}

}  // namespace

std::string called_function(const Node* node) {
  if (node->kind() != c10::prim::CallFunction) return "";
  const auto function = node->input(0)->type()->cast<c10::FunctionType>();
  return function ? function->function()->name() : "";
}

bool has_hooks(const Module& module) {
  return !module.type()->getForwardHooks().empty() || !module.type()->getForwardPreHooks().empty();
}

std::optional<WeightUse> find_weight_use(const Graph& graph) {
  std::optional<WeightUse> use;
  const Value* self = graph.inputs()[0];
  for (const Node* node : graph.nodes()) {
    for (size_t i = 0; i < node->inputs().size(); ++i) {
      if (!is_attribute_of(node->input(i), self, "weight")) continue;
      const auto application = application_by_node(node, self);
      if (use || !application || application->weight != i) return std::nullopt;
      use = WeightUse{node, *application};
    }
  }
  return use;
}

std::optional<Module> module_of(const Value* value, const Value* self, const Module& owner) {
  if (value == self) return owner;
  if (value->node()->kind() != c10::prim::GetAttr) return std::nullopt;
  const auto parent = module_of(value->node()->input(0), self, owner);
  if (!parent) return std::nullopt;
  const c10::IValue child = parent->attr(value->node()->s(c10::attr::name));
  return child.isModule() ? std::optional(child.toModule()) : std::nullopt;
}

namespace {

bool is_none(const Value* value) {
  const auto constant = torch::jit::toIValue(value);
  return constant && constant->isNone();
}

// True where the method is `return operator(x, self.weight[, self.bias])` of its one argument; a convolution
// may pad it.
bool only_applies_weight(const Graph& graph, const WeightUse& use) {
  if (graph.inputs().size() != 2 || graph.outputs().size() != 1) return false;
  const Value* self = graph.inputs()[0];
  const Node* node = use.node;
  if (graph.outputs()[0]->node() != node) return false;
  const Value* input = node->input(use.application.input);
  const Node* pad = node->kind() != c10::prim::CallMethod && is_pad(input) ? input->node() : nullptr;
  if (pad != nullptr) input = pad->input(pad->kind() == c10::prim::CallFunction ? 1 : 0);
  if (input != graph.inputs()[1]) return false;
  if (use.application.bias) {
    const Value* bias = node->input(*use.application.bias);
    if (!is_none(bias) && !is_attribute_of(bias, self, "bias")) return false;
  }
  for (const Node* other : graph.nodes()) {
    const bool plain = other->kind() == c10::prim::Constant || other->kind() == c10::prim::GetAttr ||
                       other->kind() == c10::prim::ListConstruct;
    if (other != node && other != pad && !plain) return false;
  }
  return true;
}

bool uses_bias(const WeightUse& use) {
  return use.application.bias && !is_none(use.node->input(*use.application.bias));
}

void find_outside_uses(torch::jit::Block* block, const Value* self, const Module& owner, OutsideUses& uses) {
  for (Node* node : block->nodes()) {
    for (torch::jit::Block* inner : node->blocks()) find_outside_uses(inner, self, owner, uses);
    if (node->hasAttribute(c10::attr::Subgraph))  // of a fork
      find_outside_uses(node->g(c10::attr::Subgraph)->block(), nullptr, owner, uses);
    const bool sets = node->kind() == c10::prim::SetAttr;
    if ((!sets && node->kind() != c10::prim::GetAttr) || node->input(0) == self) continue;
    const auto type = node->input(0)->type()->cast<c10::ClassType>();
    const std::string& attribute = node->s(c10::attr::name);
    if (!type || !type->is_module() || attribute == "training") continue;
    const c10::TypePtr read = sets ? nullptr : node->output()->type();
    if (!sets && (read->is_module() || read->cast<c10::InterfaceType>())) continue;  // on the way to a child
    if (const auto module = module_of(node->input(0), self, owner)) {
      uses.objects.emplace(module->_ivalue().get(), attribute);
    } else {
      uses.types.emplace(type->name()->qualifiedName(), attribute);
    }
  }
}

// Reads the methods of a module into the layer; nothing where none applies the weight.
std::optional<LayerKind> read_methods(const Module& module, Layer& layer) {
  std::optional<LayerKind> kind;
  bool biased = false;
  std::string other;
  for (const auto& method : module.get_methods()) {
    const auto graph = method.graph();
    const auto use = find_weight_use(*graph);
    if (!use) {
      if (method.name() != "_conv_forward") other = method.name();
      continue;
    }
    if (!only_applies_weight(*graph, *use)) layer.obstacle = "its module does more than apply the weight";
    if (!layer.methods.empty() && biased != uses_bias(*use))
      layer.obstacle = "its methods differ in their bias";
    kind = use->application.kind;
    if (is_convolution(*kind)) layer.convolution = read_convolution(module, *graph);
    biased = uses_bias(*use);
    layer.methods.push_back(method.name());
  }
  if (kind && !other.empty()) layer.obstacle = fmt::format("its module has the further method '{}'", other);
  if (biased && module.attr("bias").isTensor()) layer.bias = module.attr("bias").toTensor();
  return kind;
}

std::optional<Layer> read_layer(const std::string& name, const Module& module, const OutsideUses& uses) {
  if (!module.hasattr("weight") || !module.attr("weight").isTensor()) return std::nullopt;
  Layer layer{name, LayerKind::kLinear, module.attr("weight").toTensor(), {}, {}, {}};
  std::optional<LayerKind> kind = read_methods(module, layer);
  if (!kind) {
    kind = kind_of_class(module);
    layer.obstacle = "its own code does not apply its weight";
  }
  if (!kind) return std::nullopt;
  layer.kind = *kind;
  if (layer.kind == LayerKind::kConv2d && layer.weight.dim() == 3) layer.kind = LayerKind::kConv1d;
  if (layer.weight.scalar_type() != at::kFloat)
    layer.obstacle = fmt::format("its weight is {}, not float32", c10::toString(layer.weight.scalar_type()));
  if (layer.weight.numel() == 0) layer.obstacle = "its weight is empty";
  const bool convolution = is_convolution(layer.kind);
  if (convolution && layer.weight.dim() > 4)
    layer.obstacle = "it is a convolution of more than two dimensions";
  if (has_hooks(module)) layer.obstacle = "its module has forward hooks";
  const std::string used = uses.find(module);
  if (!used.empty()) layer.obstacle = fmt::format("another module uses its '{}' directly", used);
  return layer;
}

}  // namespace

std::string OutsideUses::find(const Module& module) const {
  const auto object = objects.find(module._ivalue().get());
  if (object != objects.end()) return object->second;
  const auto type = types.find(module.type()->name()->qualifiedName());
  return type == types.end() ? "" : type->second;
}

OutsideUses find_outside_uses(const Module& program) {
  OutsideUses uses;
  for (const Module& module : program.modules()) {
    for (torch::jit::Function* function : functions_of(module)) {
      const auto& graph = torch::jit::toGraphFunction(*function).graph();
      find_outside_uses(graph->block(), graph->inputs()[0], module, uses);
    }
  }
  return uses;
}

std::vector<Layer> list_layers(const Module& program) {
  const OutsideUses uses = find_outside_uses(program);
  std::vector<Layer> layers;
  std::vector<std::string> hooked;  // modules below the root; their parents call the hooks by class
  for (const auto& item : program.named_modules()) {
    if (!item.name.empty() && has_hooks(item.value)) hooked.push_back(item.name + ".");
    auto layer = read_layer(item.name, item.value, uses);
    if (!layer) continue;
    for (const std::string& around : hooked) {
      if (item.name.starts_with(around)) layer->obstacle = "a module around it has forward hooks";
    }
    layers.push_back(std::move(*layer));
  }
  return layers;
}

}  // namespace mcompress
