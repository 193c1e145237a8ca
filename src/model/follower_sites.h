#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include <torch/csrc/jit/ir/ir.h>
#include <torch/script.h>

#include "mcompress/model/layer.h"

namespace mcompress {

using ModuleObject = c10::ivalue::Object;  // by which a module is told from others of its type

// A layer's call and what follows it in the same method.
struct Site {
  const ModuleObject *layer, *norm = nullptr;
  torch::jit::Node *norm_node = nullptr, *relu_node = nullptr;
  const ModuleObject* taker = nullptr;  // the layer that alone is given all of that
};

// Which modules are called, and how often.
struct Calls {
  std::map<const ModuleObject*, int> objects;
  std::set<std::string> unresolved;  // types of modules that are called in a way that does not name them
  bool through_interface = false;    // by which any module may be meant

  bool once(const torch::jit::Module& module) const;
};

// Whether it is this class of torch.nn, not one of the user's with the same name.
bool is_of_torch(const torch::jit::Module& module, const std::string& name);
// Whether it is torch.nn's BatchNorm1d or BatchNorm2d.
bool is_norm(const torch::jit::Module& module);

std::vector<torch::jit::Function*> functions_of(const torch::jit::Module& module);  // methods and hooks

// The calls of these layers in a method of `owner`, those in forks among them. `calls`, where it is given,
// also counts the calls of all modules.
std::vector<Site> find_sites(const torch::jit::Module& owner, torch::jit::Graph& graph,
                             const std::set<const ModuleObject*>& layers, Calls* calls);

// Of all modules of a program, and how often each is called.
std::vector<Site> all_sites(const torch::jit::Module& program, const std::set<const ModuleObject*>& layers,
                            Calls& calls);

// The layers by their modules, but for those with two names, each of which may be replaced alone.
std::map<const ModuleObject*, size_t> index_layers(const torch::jit::Module& program,
                                                   const std::vector<Layer>& layers);

}  // namespace mcompress
