#include <optional>
#include <set>

#include "mcompress/model/program.h"

namespace mcompress {

namespace {

using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

std::optional<LayerKind> kind_of_operator(const std::string& name) {
  if (name == "aten::linear") return LayerKind::kLinear;
  if (name == "aten::conv1d") return LayerKind::kConv1d;
  if (name == "aten::conv2d") return LayerKind::kConv2d;
  if (name == "aten::embedding") return LayerKind::kEmbedding;
  if (name == "aten::_convolution") return LayerKind::kConv2d;
  return std::nullopt;
}

// The operator that a node stands for. Scripted modules hand their weight on: an embedding to the
// function torch.nn.functional.embedding, a convolution to a method of its own.
std::optional<LayerKind> kind_of_node(const Node* node, const Value* self) {
  if (node->kind() == c10::prim::CallMethod && node->input(0) == self) {
    return node->s(c10::attr::name) == "_conv_forward" ? std::optional(LayerKind::kConv2d) : std::nullopt;
  }
  if (node->kind() != c10::prim::CallFunction) return kind_of_operator(node->kind().toQualString());
  const auto function = node->input(0)->type()->cast<c10::FunctionType>();
  if (!function || function->function()->name() != "embedding") return std::nullopt;
  constexpr size_t kMaxNorm = 4;  // function, input, weight, padding_idx, max_norm
  const auto max_norm = torch::jit::toIValue(node->input(kMaxNorm));
  return max_norm && max_norm->isNone() ? std::optional(LayerKind::kEmbedding) : std::nullopt;
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

// The operator that `graph` applies to its weight; nothing where the weight is not used once, as
// the operand of a known operator.
std::optional<LayerKind> operator_of(const torch::jit::Graph& graph) {
  std::optional<LayerKind> kind;
  const Value* self = graph.inputs()[0];
  for (const Node* node : const_cast<torch::jit::Graph&>(graph).nodes()) {
    for (const Value* input : node->inputs()) {
      if (!is_attribute_of(input, self, "weight")) continue;
      const auto found = kind_of_node(node, self);
      if (!found || kind) return std::nullopt;
      kind = found;
    }
  }
  return kind;
}

// True where the method is `return operator(x, self.weight[, self.bias, ...])` and no more.
bool only_applies_weight(const torch::jit::Graph& graph) {
  if (graph.inputs().size() != 2 || graph.outputs().size() != 1) return false;
  return kind_of_node(graph.outputs()[0]->node(), graph.inputs()[0]).has_value();
}

// The module that a value names, below the module at `path` whose method has `self`; nothing where
// it is not reached by attributes alone.
std::optional<std::string> path_of(const Value* value, const Value* self, const std::string& path) {
  if (value == self) return path;
  if (value->node()->kind() != c10::prim::GetAttr) return std::nullopt;
  const auto parent = path_of(value->node()->input(0), self, path);
  if (!parent) return std::nullopt;
  const std::string& name = value->node()->s(c10::attr::name);
  return parent->empty() ? name : *parent + "." + name;
}

// Layers whose weight or bias is read from outside their own methods: by name, or by type where the
// reader does not tell which module of that type it reads.
struct OutsideReads {
  std::set<std::string> names, types;
};

void find_reads(torch::jit::Block* block, const Value* self, const std::string& path, OutsideReads& reads) {
  for (Node* node : block->nodes()) {
    for (torch::jit::Block* inner : node->blocks()) find_reads(inner, self, path, reads);
    if (node->kind() != c10::prim::GetAttr || node->input(0) == self) continue;
    const std::string& attribute = node->s(c10::attr::name);
    const auto type = node->input(0)->type()->cast<c10::ClassType>();
    if (!type || (attribute != "weight" && attribute != "bias")) continue;
    if (const auto name = path_of(node->input(0), self, path)) {
      reads.names.insert(*name);
    } else {
      reads.types.insert(type->name()->qualifiedName());
    }
  }
}

OutsideReads find_outside_reads(const Module& program) {
  OutsideReads reads;
  for (const auto& item : program.named_modules()) {
    for (const auto& method : item.value.get_methods()) {
      find_reads(method.graph()->block(), method.graph()->inputs()[0], item.name, reads);
    }
  }
  return reads;
}

std::optional<Layer> read_layer(const std::string& name, const Module& module, const OutsideReads& reads) {
  if (!module.hasattr("weight") || !module.attr("weight").isTensor()) return std::nullopt;
  Layer layer{name, LayerKind::kLinear, module.attr("weight").toTensor(), {}, {}, {}};
  std::optional<LayerKind> kind;
  for (const auto& method : module.get_methods()) {
    if (method.name().starts_with("_") || method.name() == "extra_repr") continue;
    const auto found = operator_of(*method.graph());
    if (!found) continue;
    kind = found;
    layer.methods.push_back(method.name());
    if (!only_applies_weight(*method.graph())) layer.obstacle = "its module does more than apply the weight";
  }
  if (!kind) {
    kind = kind_of_class(module);
    layer.obstacle = "its own code does not apply its weight";
  }
  if (!kind) return std::nullopt;
  layer.kind = *kind;
  if (layer.kind == LayerKind::kConv2d && layer.weight.dim() == 3) layer.kind = LayerKind::kConv1d;
  if (module.hasattr("bias") && module.attr("bias").isTensor()) layer.bias = module.attr("bias").toTensor();
  if (reads.names.contains(name) || reads.types.contains(module.type()->name()->qualifiedName())) {
    layer.obstacle = "another module reads its weight directly";
  }
  return layer;
}

}  // namespace

const char* name_of(LayerKind kind) {
  switch (kind) {
    case LayerKind::kLinear: return "linear";
    case LayerKind::kConv1d: return "conv1d";
    case LayerKind::kConv2d: return "conv2d";
    case LayerKind::kEmbedding: return "embedding";
  }
  return "?";
}

std::vector<Layer> list_layers(const Module& program) {
  const OutsideReads reads = find_outside_reads(program);
  std::vector<Layer> layers;
  for (const auto& item : program.named_modules()) {
    if (auto layer = read_layer(item.name, item.value, reads)) layers.push_back(std::move(*layer));
  }
  return layers;
}

}  // namespace mcompress
