#include "mcompress/model/followers.h"

#include <algorithm>
#include <map>
#include <set>

#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include "follower_sites.h"
#include "mcompress/model/program.h"
#include "rebuild.h"
#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Block;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

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
      if (call || called_function(node) != "batch_norm") return std::nullopt;
      call = NormCall{node->input(7), node->input(8)};
    }
  }
  return call;
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

std::set<const ModuleObject*> keys_of(const std::map<const ModuleObject*, size_t>& map) {
  std::set<const ModuleObject*> keys;
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
  std::map<const ModuleObject*, std::pair<std::string, Module>> norms;
  std::map<const ModuleObject*, Module> modules;
  for (const auto& item : program.named_modules()) {
    modules.emplace(item.value._ivalue().get(), item.value);
    if (is_norm(item.value)) norms.emplace(item.value._ivalue().get(), std::pair(item.name, item.value));
  }
  Calls calls;
  const std::vector<Site> sites = all_sites(program, objects, calls);
  FollowerList result;
  result.of_layer.resize(layers.size());
  std::map<const ModuleObject*, std::string> reasons;
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

std::vector<std::optional<size_t>> find_takers(const Module& program, const std::vector<Layer>& layers) {
  const auto index = index_layers(program, layers);
  std::map<const ModuleObject*, Module> modules;
  for (const auto& item : program.named_modules()) modules.emplace(item.value._ivalue().get(), item.value);
  Calls calls;
  const std::vector<Site> sites = all_sites(program, keys_of(index), calls);
  std::vector<std::optional<size_t>> takers(layers.size());
  for (const Site& site : sites) {
    if (site.taker == nullptr || site.norm != nullptr) continue;
    if (calls.once(modules.at(site.layer)) && calls.once(modules.at(site.taker)))
      takers[index.at(site.layer)] = index.at(site.taker);
  }
  return takers;
}

Module drop_followers(const Module& program, const std::vector<Layer>& layers,
                      const std::vector<bool>& chosen, const std::map<std::string, Module>& replacements) {
  const FollowerList followers = find_followers(program, layers);
  const auto index = index_layers(program, layers);
  std::set<const ModuleObject*> objects;
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
