#include <map>
#include <set>

#include "follower_sites.h"
#include "mcompress/model/followers.h"
#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

bool is_plain(const Node* node) {
  const auto kind = node->kind();
  return kind == c10::prim::Constant || kind == c10::prim::GetAttr || kind == c10::prim::ListConstruct ||
         kind == c10::prim::TupleConstruct || kind == c10::prim::TupleUnpack;
}

bool reads(const Value* value, const Value* self, const char* attribute) {
  const Node* node = value->node();
  return node->kind() == c10::prim::GetAttr && node->input(0) == self &&
         node->s(c10::attr::name) == attribute;
}

// Whether a module does nothing but normalize its input over the last dimension, by its own weight and bias.
bool is_layer_norm(const Module& module) {
  if (!is_of_torch(module, "LayerNorm") || has_hooks(module) || module.get_methods().size() != 1)
    return false;
  const auto graph = module.get_method("forward").graph();
  const Node* norm = nullptr;
  for (const Node* node : graph->nodes()) {
    if (is_plain(node)) continue;
    if (norm != nullptr || (node->kind() != c10::aten::layer_norm && called_function(node) != "layer_norm"))
      return false;
    norm = node;
  }
  if (norm == nullptr || graph->inputs().size() != 2 || graph->outputs()[0]->node() != norm) return false;
  const size_t first = norm->kind() == c10::aten::layer_norm ? 0 : 1;  // after the function
  const Value *self = graph->inputs()[0], *bias = norm->input(first + 3);
  const auto constant = torch::jit::toIValue(bias);
  const bool fits = norm->input(first) == graph->inputs()[1] &&
                    reads(norm->input(first + 2), self, "weight") &&
                    (reads(bias, self, "bias") || (constant && constant->isNone()));
  return fits && module.attr("weight").isTensor() && module.attr("weight").toTensor().dim() == 1;
}

// What a value's shape or type is asked for, which its numbers have no part in.
bool asks_for_form(const Node* node) {
  static const std::set<c10::Symbol> kForm = {c10::aten::size,   c10::aten::dim,
                                              c10::prim::device, c10::prim::dtype,
                                              c10::prim::layout, c10::aten::is_floating_point};
  return kForm.contains(node->kind());
}

// Whether a method calls another of its own module, with whatever argument.
bool calls_itself(Block* block, const Value* self) {
  for (Node* node : block->nodes()) {
    if (node->kind() == c10::prim::CallMethod && node->input(0) == self) return true;
    for (Block* inner : node->blocks()) {
      if (calls_itself(inner, self)) return true;
    }
  }
  return false;
}
bool calls_itself(const Module& module) {
  for (const auto& method : module.get_methods()) {
    if (calls_itself(method.graph()->block(), method.graph()->inputs()[0])) return true;
  }
  return false;
}

// Follows the outputs of layer normalizations.
class NormFinder {
 public:
  NormFinder(const Module& program, const std::vector<Layer>& layers)
      : index_(index_layers(program, layers)), outside_(find_outside_uses(program)) {
    all_sites(program, {}, calls_);
    std::set<const ModuleObject*> twice;
    for (const auto& item : program.named_modules()) {
      const ModuleObject* object = item.value._ivalue().get();
      if (!names_.emplace(object, item.name).second) twice.insert(object);
    }
    for (const ModuleObject* object : twice) names_.erase(object);
  }

  void visit(const Module& owner, Graph& graph) { visit(owner, graph, graph.block()); }
  std::vector<NormTakers> found() { return std::move(found_); }

 private:
  void visit(const Module& owner, Graph& graph, Block* block) {
    for (Node* node : block->nodes()) {
      for (Block* inner : node->blocks()) visit(owner, graph, inner);
      if (node->kind() != c10::prim::CallMethod || node->outputs().size() != 1) continue;
      const auto module = module_of(node->input(0), graph.inputs()[0], owner);
      if (!module || !is_layer_norm(*module) || !used_once(*module) || !outside_.find(*module).empty())
        continue;
      std::set<size_t> takers;
      if (collect(owner, graph, node->output(), takers) && !takers.empty()) add(*module, takers);
    }
  }

  // One module of one name that is called in one place.
  bool used_once(const Module& module) const {
    return calls_.once(module) && names_.contains(module._ivalue().get());
  }

  // Whether the value goes to layers alone.
  bool collect(const Module& owner, Graph& graph, const Value* value, std::set<size_t>& takers) const {
    const Value* self = graph.inputs()[0];
    for (const auto& use : value->uses()) {
      const Node* node = use.user;
      if (asks_for_form(node)) continue;
      if (node->kind() != c10::prim::CallMethod || use.offset == 0 || node->input(0) == self) return false;
      const auto module = module_of(node->input(0), self, owner);
      if (!module || !used_once(*module) || has_hooks(*module)) return false;
      const auto layer = index_.find(module->_ivalue().get());
      if (layer != index_.end()) {
        takers.insert(layer->second);
      } else if (!collect_inside(*module, node->s(c10::attr::name), use.offset, takers)) {
        return false;
      }
    }
    return true;
  }

  // Of an argument of a method.
  bool collect_inside(const Module& module, const std::string& method, size_t argument,
                      std::set<size_t>& takers) const {
    const auto found = module.find_method(method);
    if (!found || calls_itself(module)) return false;
    Graph& graph = *found->graph();
    return argument < graph.inputs().size() && collect(module, graph, graph.inputs()[argument], takers);
  }

  void add(const Module& module, const std::set<size_t>& takers) {
    const bool biased = module.hasattr("bias") && module.attr("bias").isTensor();
    found_.push_back({names_.at(module._ivalue().get()),
                      module.attr("weight").toTensor(),
                      biased ? module.attr("bias").toTensor() : at::Tensor(),
                      {takers.begin(), takers.end()}});
  }

  std::map<const ModuleObject*, size_t> index_;
  std::map<const ModuleObject*, std::string> names_;
  OutsideUses outside_;
  Calls calls_;
  std::vector<NormTakers> found_;
};

}  // namespace

std::vector<NormTakers> find_norm_takers(const Module& program, const std::vector<Layer>& layers) {
  NormFinder finder(program, layers);
  std::set<const ModuleObject*> visited;
  for (const Module& module : program.modules()) {
    if (!visited.insert(module._ivalue().get()).second) continue;
    for (torch::jit::Function* function : functions_of(module))
      finder.visit(module, *torch::jit::toGraphFunction(*function).graph());
  }
  return finder.found();
}

}  // namespace mcompress
