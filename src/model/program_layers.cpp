#include <map>
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
      const auto found = kind_of_operator(node->kind().toQualString());
      if (!found || kind) return std::nullopt;
      kind = found;
    }
  }
  return kind;
}

// True where the method is `return operator(x, self.weight[, self.bias, ...])` and no more.
bool only_applies_weight(const torch::jit::Graph& graph) {
  if (graph.inputs().size() != 2 || graph.outputs().size() != 1) return false;
  return kind_of_operator(graph.outputs()[0]->node()->kind().toQualString()).has_value();
}

// Types of modules whose weight or bias is read from outside their own methods.
void find_outside_reads(const Module& program, std::set<std::string>& types) {
  const auto scan = [&](torch::jit::Block* top, const Value* self) {
    std::vector<torch::jit::Block*> blocks{top};
    while (!blocks.empty()) {
      torch::jit::Block* block = blocks.back();
      blocks.pop_back();
      for (Node* node : block->nodes()) {
        for (torch::jit::Block* inner : node->blocks()) blocks.push_back(inner);
        if (node->kind() != c10::prim::GetAttr || node->input(0) == self) continue;
        const std::string& name = node->s(c10::attr::name);
        const auto type = node->input(0)->type()->cast<c10::ClassType>();
        if (type && (name == "weight" || name == "bias")) types.insert(type->name()->qualifiedName());
      }
    }
  };
  for (const Module& module : const_cast<Module&>(program).modules()) {
    for (const auto& method : module.get_methods()) {
      scan(method.graph()->block(), method.graph()->inputs()[0]);
    }
  }
}

std::optional<Layer> read_layer(const std::string& name, const Module& module,
                                const std::set<std::string>& read_outside) {
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
  if (!kind) return std::nullopt;
  layer.kind = *kind;
  if (layer.kind == LayerKind::kConv2d && layer.weight.dim() == 3) layer.kind = LayerKind::kConv1d;
  if (module.hasattr("bias") && module.attr("bias").isTensor()) layer.bias = module.attr("bias").toTensor();
  if (read_outside.contains(module.type()->name()->qualifiedName())) {
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
  std::set<std::string> read_outside;
  find_outside_reads(program, read_outside);
  std::vector<Layer> layers;
  for (const auto& item : program.named_modules()) {
    if (auto layer = read_layer(item.name, item.value, read_outside)) layers.push_back(std::move(*layer));
  }
  return layers;
}

}  // namespace mcompress
