#include "follower_sites.h"

#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Block;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

class SiteFinder {
 public:
  SiteFinder(const std::set<const ModuleObject*>& layers, const Module& owner, const Value* self,
             Calls* calls)
      : layers_(layers), owner_(owner), self_(self), calls_(calls) {}

  std::vector<Site> find(Block* block) {
    visit(block);
    return std::move(sites_);
  }

 private:
  void visit(Block* block) {
    for (Node* node : block->nodes()) {
      for (Block* inner : node->blocks()) visit(inner);
      if (node->hasAttribute(c10::attr::Subgraph)) visit(node->g(c10::attr::Subgraph)->block());  // of a fork
      if (node->kind() != c10::prim::CallMethod || node->input(0) == self_) continue;  // its own helpers
      const auto module = module_of(node->input(0), self_, owner_);
      count(node, module);
      if (module && layers_.contains(module->_ivalue().get()) && node->outputs().size() == 1)
        sites_.push_back(follow(module->_ivalue().get(), node));
    }
  }

  void count(const Node* node, const std::optional<Module>& module) {
    if (calls_ == nullptr) return;
    if (module) {
      ++calls_->objects[module->_ivalue().get()];
    } else if (const auto type = node->input(0)->type()->cast<c10::ClassType>()) {
      calls_->unresolved.insert(type->name()->qualifiedName());
    } else {
      calls_->through_interface = true;
    }
  }

  Site follow(const ModuleObject* layer, Node* call) {
    Site site{layer};
    const Value* value = call->output();
    Node* user = only_user(value);
    if (user != nullptr && is_forward(user)) {
      const auto module = module_of(user->input(0), self_, owner_);
      if (module && is_norm(*module)) {
        site.norm = module->_ivalue().get();
        site.norm_node = user;
        value = user->output();
        user = only_user(value);
      }
    }
    if (user != nullptr && is_relu(user)) {
      site.relu_node = user;
      user = only_user(user->output());
    }
    if (user != nullptr && is_forward(user)) {
      const auto module = module_of(user->input(0), self_, owner_);
      if (module && layers_.contains(module->_ivalue().get())) site.taker = module->_ivalue().get();
    }
    return site;
  }

  // Where the value goes, if that is one place in the same block.
  static Node* only_user(const Value* value) {
    if (value->uses().size() != 1) return nullptr;
    Node* user = value->uses()[0].user;
    return user->owningBlock() == value->node()->owningBlock() && user->outputs().size() == 1 ? user
                                                                                              : nullptr;
  }

  // A module's call with one input.
  static bool is_forward(const Node* node) {
    return node->kind() == c10::prim::CallMethod && node->inputs().size() == 2 &&
           node->s(c10::attr::name).starts_with("forward");
  }

  bool is_relu(const Node* node) const {
    if (node->kind() == c10::aten::relu || node->kind() == c10::aten::relu_) return true;
    if (called_function(node) == "relu")
      return node->input(0)->type()->expect<c10::FunctionType>()->function()->qualname().qualifiedName().find(
                 "torch.nn.functional") != std::string::npos;
    if (node->kind() != c10::prim::CallMethod) return false;
    const auto module = module_of(node->input(0), self_, owner_);
    return module && is_of_torch(*module, "ReLU") && !has_hooks(*module);
  }

  const std::set<const ModuleObject*>& layers_;
  const Module& owner_;
  const Value* self_;
  Calls* calls_;
  std::vector<Site> sites_;
};

}  // namespace

bool Calls::once(const Module& module) const {
  if (through_interface) return false;
  const auto found = objects.find(module._ivalue().get());
  return found != objects.end() && found->second == 1 &&
         !unresolved.contains(module.type()->name()->qualifiedName());
}

bool is_of_torch(const Module& module, const std::string& name) {
  return module.type()->name()->name() == name &&
         module.type()->name()->qualifiedName().starts_with("__torch__.torch.nn.modules.");
}

bool is_norm(const Module& module) {
  return is_of_torch(module, "BatchNorm1d") || is_of_torch(module, "BatchNorm2d");
}

std::vector<torch::jit::Function*> functions_of(const Module& module) {
  std::vector<torch::jit::Function*> functions = module.type()->methods();
  for (const auto& hooks : {module.type()->getForwardHooks(), module.type()->getForwardPreHooks()})
    functions.insert(functions.end(), hooks.begin(), hooks.end());
  return functions;
}

std::vector<Site> find_sites(const Module& owner, torch::jit::Graph& graph,
                             const std::set<const ModuleObject*>& layers, Calls* calls) {
  return SiteFinder(layers, owner, graph.inputs()[0], calls).find(graph.block());
}

std::vector<Site> all_sites(const Module& program, const std::set<const ModuleObject*>& objects,
                            Calls& calls) {
  std::vector<Site> sites;
  std::set<const ModuleObject*> visited;
  for (const Module& module : program.modules()) {
    if (!visited.insert(module._ivalue().get()).second) continue;
    for (torch::jit::Function* function : functions_of(module)) {
      auto& graph = *torch::jit::toGraphFunction(*function).graph();
      for (const Site& site : find_sites(module, graph, objects, &calls)) sites.push_back(site);
    }
  }
  return sites;
}

std::map<const ModuleObject*, size_t> index_layers(const Module& program, const std::vector<Layer>& layers) {
  std::map<std::string, size_t> names;
  for (size_t i = 0; i < layers.size(); ++i) names.emplace(layers[i].name, i);
  std::map<const ModuleObject*, size_t> result;
  std::set<const ModuleObject*> twice;  // under two names, each of which may be replaced alone
  for (const auto& item : program.named_modules()) {
    const auto found = names.find(item.name);
    if (found == names.end()) continue;
    if (!result.emplace(item.value._ivalue().get(), found->second).second)
      twice.insert(item.value._ivalue().get());
  }
  for (const ModuleObject* object : twice) result.erase(object);
  return result;
}

}  // namespace mcompress
