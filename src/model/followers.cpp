#include "mcompress/model/followers.h"

#include <algorithm>
#include <map>
#include <set>

#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include "rebuild.h"
#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Block;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;
using Object = c10::ivalue::Object;

std::optional<at::Tensor> tensor_of(const Module& module, const std::string& name) {
  if (!module.hasattr(name) || !module.attr(name).isTensor()) return std::nullopt;
  return module.attr(name).toTensor();
}

// The call of torch's batch_norm in a module's forward: the function in scripted modules, the operator in
// traced ones, whose operands lie in another order.
struct NormCall {
  const Value *momentum, *eps;
};
std::optional<NormCall> find_norm_call(const torch::jit::Graph& graph) {
  std::optional<NormCall> call;
  for (const Node* node : graph.nodes()) {
    if (node->kind() == c10::aten::batch_norm) {
      const auto training = torch::jit::toIValue(node->input(5));
      if (call || !training || !training->isBool() || training->toBool()) return std::nullopt;
      call = NormCall{node->input(6), node->input(7)};
    } else if (node->kind() == c10::prim::CallFunction && node->inputs().size() == 9) {
      const auto function = node->input(0)->type()->cast<c10::FunctionType>();
      if (call || !function || function->function()->name() != "batch_norm") return std::nullopt;
      call = NormCall{node->input(7), node->input(8)};
    }
  }
  return call;
}

bool has_hooks(const Module& module) {
  return !module.type()->getForwardHooks().empty() || !module.type()->getForwardPreHooks().empty();
}

// Methods and hooks.
std::vector<torch::jit::Function*> functions_of(const Module& module) {
  std::vector<torch::jit::Function*> functions = module.type()->methods();
  for (const auto& hooks : {module.type()->getForwardHooks(), module.type()->getForwardPreHooks()})
    functions.insert(functions.end(), hooks.begin(), hooks.end());
  return functions;
}

// A class of torch.nn, not one of the user's with the same name.
bool is_of_torch(const Module& module, const std::string& name) {
  return module.type()->name()->name() == name &&
         module.type()->name()->qualifiedName().starts_with("__torch__.torch.nn.modules.");
}

bool is_norm(const Module& module) {
  return is_of_torch(module, "BatchNorm1d") || is_of_torch(module, "BatchNorm2d");
}

// The numbers of a batch normalization. Its momentum may be None, which torch means as a plain average.
std::optional<BatchNorm> read_norm(const std::string& name, const Module& module) {
  const auto mean = tensor_of(module, "running_mean"), variance = tensor_of(module, "running_var");
  const auto forward = module.find_method("forward");
  if (!mean || !variance || !forward || module.get_methods().size() > 2) return std::nullopt;
  const auto call = find_norm_call(*forward->graph());
  if (!call) return std::nullopt;
  const auto eps = torch::jit::toIValue(call->eps), momentum = torch::jit::toIValue(call->momentum);
  if (!eps || !eps->isDouble()) return std::nullopt;
  constexpr double kMomentum = 0.1;
  return BatchNorm{name,
                   tensor_of(module, "weight").value_or(at::ones_like(*mean)),
                   tensor_of(module, "bias").value_or(at::zeros_like(*mean)),
                   *mean,
                   *variance,
                   eps->toDouble(),
                   momentum && momentum->isDouble() ? momentum->toDouble() : kMomentum};
}

// A layer's call and what follows it in the same method.
struct Site {
  const Object *layer, *norm = nullptr;
  Node *norm_node = nullptr, *relu_node = nullptr;
};

// Which modules are called, and how often.
struct Calls {
  std::map<const Object*, int> objects;
  std::set<std::string> unresolved;  // types of modules that are called in a way that does not name them

  bool through_interface = false;  // by which any module may be meant

  bool once(const Module& module) const {
    if (through_interface) return false;
    const auto found = objects.find(module._ivalue().get());
    return found != objects.end() && found->second == 1 &&
           !unresolved.contains(module.type()->name()->qualifiedName());
  }
};

class SiteFinder {
 public:
  SiteFinder(const std::set<const Object*>& layers, const Module& owner, const Value* self, Calls* calls)
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

  Site follow(const Object* layer, Node* call) {
    Site site{layer};
    const Value* value = call->output();
    Node* user = only_user(value);
    if (user != nullptr && user->kind() == c10::prim::CallMethod && user->inputs().size() == 2 &&
        user->s(c10::attr::name).starts_with("forward")) {
      const auto module = module_of(user->input(0), self_, owner_);
      if (module && is_norm(*module)) {
        site.norm = module->_ivalue().get();
        site.norm_node = user;
        value = user->output();
        user = only_user(value);
      }
    }
    if (user != nullptr && is_relu(user)) site.relu_node = user;
    return site;
  }

  // Where the value goes, if that is one place in the same block.
  static Node* only_user(const Value* value) {
    if (value->uses().size() != 1) return nullptr;
    Node* user = value->uses()[0].user;
    return user->owningBlock() == value->node()->owningBlock() && user->outputs().size() == 1 ? user
                                                                                              : nullptr;
  }

  bool is_relu(const Node* node) const {
    if (node->kind() == c10::aten::relu || node->kind() == c10::aten::relu_) return true;
    if (node->kind() == c10::prim::CallFunction) {
      const auto function = node->input(0)->type()->cast<c10::FunctionType>();
      return function && function->function()->name() == "relu" &&
             function->function()->qualname().qualifiedName().find("torch.nn.functional") !=
                 std::string::npos;
    }
    if (node->kind() != c10::prim::CallMethod) return false;
    const auto module = module_of(node->input(0), self_, owner_);
    return module && is_of_torch(*module, "ReLU") && !has_hooks(*module);
  }

  const std::set<const Object*>& layers_;
  const Module& owner_;
  const Value* self_;
  Calls* calls_;
  std::vector<Site> sites_;
};

std::vector<Site> find_sites(const Module& owner, torch::jit::Graph& graph,
                             const std::set<const Object*>& layers, Calls* calls) {
  return SiteFinder(layers, owner, graph.inputs()[0], calls).find(graph.block());
}

std::map<const Object*, size_t> index_layers(const Module& program, const std::vector<Layer>& layers) {
  std::map<std::string, size_t> names;
  for (size_t i = 0; i < layers.size(); ++i) names.emplace(layers[i].name, i);
  std::map<const Object*, size_t> result;
  std::set<const Object*> twice;  // under two names, each of which may be replaced alone
  for (const auto& item : program.named_modules()) {
    const auto found = names.find(item.name);
    if (found == names.end()) continue;
    if (!result.emplace(item.value._ivalue().get(), found->second).second)
      twice.insert(item.value._ivalue().get());
  }
  for (const Object* object : twice) result.erase(object);
  return result;
}

std::set<const Object*> keys_of(const std::map<const Object*, size_t>& map) {
  std::set<const Object*> keys;
  for (const auto& [object, index] : map) keys.insert(object);
  return keys;
}

// The value that a follower was given.
Value* input_of(Node* node) {
  const bool plain = node->kind() == c10::aten::relu || node->kind() == c10::aten::relu_;
  return node->input(plain ? 0 : 1);
}

void bypass(Node* node) {
  node->output()->replaceAllUsesWith(input_of(node));
  node->destroy();
}

// Whether a method of the program still reads this attribute of this type.
bool reads(Block* block, const c10::ClassTypePtr& type, const std::string& name) {
  for (Node* node : block->nodes()) {
    if (node->kind() == c10::prim::GetAttr && node->s(c10::attr::name) == name &&
        node->input(0)->type()->isSubtypeOf(*type))
      return true;
    for (Block* inner : node->blocks()) {
      if (reads(inner, type, name)) return true;
    }
    if (node->hasAttribute(c10::attr::Subgraph) && reads(node->g(c10::attr::Subgraph)->block(), type, name))
      return true;
  }
  return false;
}

bool reads(const Module& program, const c10::ClassTypePtr& type, const std::string& name) {
  for (const Module& module : program.modules()) {
    for (torch::jit::Function* function : functions_of(module)) {
      if (reads(torch::jit::toGraphFunction(*function).graph()->block(), type, name)) return true;
    }
  }
  return false;
}

std::pair<std::string, std::string> split_path(const std::string& path) {
  const size_t dot = path.rfind('.');
  return dot == std::string::npos ? std::pair(std::string(), path)
                                  : std::pair(path.substr(0, dot), path.substr(dot + 1));
}

Module module_at(const Module& program, const std::string& path) {
  if (path.empty()) return program;
  const auto [parent, name] = split_path(path);
  return module_at(program, parent).attr(name).toModule();
}

// Takes modules that nothing calls any more out of the file.
void remove_unused(const Module& program, const std::set<std::string>& paths) {
  for (const std::string& path : paths) {
    const auto [parent_path, name] = split_path(path);
    const Module parent = module_at(program, parent_path);
    if (reads(program, parent.type(), name)) continue;
    const size_t slot = parent.type()->getAttributeSlot(name);
    parent._ivalue()->unsafeRemoveSlot(slot);
    parent.type()->unsafeRemoveAttribute(name);
  }
}

}  // namespace

FollowerList find_followers(const Module& program, const std::vector<Layer>& layers) {
  const auto index = index_layers(program, layers);
  const auto objects = keys_of(index);
  std::map<const Object*, std::pair<std::string, Module>> norms;
  std::map<const Object*, Module> modules;
  for (const auto& item : program.named_modules()) {
    modules.emplace(item.value._ivalue().get(), item.value);
    if (is_norm(item.value)) norms.emplace(item.value._ivalue().get(), std::pair(item.name, item.value));
  }
  Calls calls;
  std::vector<Site> sites;
  std::set<const Object*> visited;
  for (const Module& module : program.modules()) {
    if (!visited.insert(module._ivalue().get()).second) continue;
    for (torch::jit::Function* function : functions_of(module)) {
      auto& graph = *torch::jit::toGraphFunction(*function).graph();
      for (const Site& site : find_sites(module, graph, objects, &calls)) sites.push_back(site);
    }
  }
  FollowerList result;
  result.of_layer.resize(layers.size());
  std::map<const Object*, std::string> reasons;
  for (const auto& [object, norm] : norms) reasons[object] = "it does not follow a layer alone";
  for (const Site& site : sites) {
    const size_t layer = index.at(site.layer);
    if (!calls.once(modules.at(site.layer)) || !layers[layer].obstacle.empty()) continue;
    Followers& followers = result.of_layer[layer];
    if (site.norm != nullptr) {
      const auto& [name, module] = norms.at(site.norm);
      followers.norm = read_norm(name, module);
      const bool fits = followers.norm && layers[layer].kind != LayerKind::kEmbedding &&
                        followers.norm->mean.numel() == layers[layer].weight.size(0);
      if (!fits || has_hooks(module) || !calls.once(module)) {
        followers.norm.reset();
        reasons[site.norm] = !calls.once(module) ? "it is used more than once"
                                                 : "it has no running statistics, or its code is its own";
        continue;
      }
      reasons.erase(site.norm);
    }
    followers.relu = site.relu_node != nullptr && layers[layer].kind != LayerKind::kEmbedding;
  }
  for (const auto& [object, reason] : reasons) {
    const auto& [name, module] = norms.at(object);
    uint64_t bytes = 0;
    for (const at::Tensor& tensor : module.parameters()) bytes += tensor.nbytes();
    for (const at::Tensor& tensor : module.buffers()) bytes += tensor.nbytes();
    result.loose.push_back({name, reason, bytes});
  }
  std::sort(result.loose.begin(), result.loose.end(),
            [](const LooseNorm& a, const LooseNorm& b) { return a.name < b.name; });
  return result;
}

Module drop_followers(const Module& program, const std::vector<Layer>& layers,
                      const std::vector<bool>& chosen, const std::map<std::string, Module>& replacements) {
  const FollowerList followers = find_followers(program, layers);
  const auto index = index_layers(program, layers);
  std::set<const Object*> objects;
  std::set<std::string> unused;
  for (const auto& [object, layer] : index) {
    const Followers& found = followers.of_layer[layer];
    if (!chosen[layer] || (!found.norm && !found.relu)) continue;
    objects.insert(object);
    if (found.norm) unused.insert(found.norm->name);
  }
  const auto edit_graph = [&](const Module& owner, torch::jit::Graph& graph) {
    for (const Site& site : find_sites(owner, graph, objects, nullptr)) {
      const Followers& found = followers.of_layer[index.at(site.layer)];
      if (found.relu) bypass(site.relu_node);
      if (found.norm) bypass(site.norm_node);
    }
    torch::jit::EliminateDeadCode(graph.block());
  };
  Edits edits;
  for (const auto& item : program.named_modules()) {
    bool calls_chosen = false;
    for (const auto& method : item.value.get_methods())
      calls_chosen = calls_chosen || !find_sites(item.value, *method.graph(), objects, nullptr).empty();
    if (!calls_chosen) continue;
    edits[item.name] = [&edit_graph, owner = item.value](Module& copy) {
      for (auto* method : copy.type()->methods())
        edit_graph(owner, *torch::jit::toGraphFunction(*method).graph());
    };
  }
  for (const std::string& norm : unused) edits.try_emplace(split_path(norm).first, [](Module&) {});
  Module result = replace_modules(program, replacements, edits);
  remove_unused(result, unused);
  return result;
}

}  // namespace mcompress
