#pragma once

#include <map>
#include <optional>
#include <string>

#include <torch/csrc/jit/ir/ir.h>
#include <torch/script.h>

#include "mcompress/model/layer.h"

namespace mcompress {

// How a node applies a weight: its kind, and which of its operands are what.
struct Application {
  LayerKind kind;
  size_t input, weight;
  std::optional<size_t> bias;
};

// The one node of a module's method that applies the module's own weight; nothing where there is none, or
// where the weight has other uses.
struct WeightUse {
  const torch::jit::Node* node;
  Application application;
};
std::optional<WeightUse> find_weight_use(const torch::jit::Graph& graph);

// The settings of the convolution that a module applies in `method`; nothing where they are not constants.
std::optional<Convolution> read_convolution(const torch::jit::Module& module,
                                            const torch::jit::Graph& method);
// The name of the function that a node calls, such as torch.nn.functional's "relu"; empty where it calls
// none.
std::string called_function(const torch::jit::Node* node);

bool has_hooks(const torch::jit::Module& module);

bool is_pad(const torch::jit::Value* value);  // whether it comes from aten::pad or torch.nn.functional.pad

// The module that a value names, below `owner` whose method has `self`; nothing where it is not
// reached by attributes alone.
std::optional<torch::jit::Module> module_of(const torch::jit::Value* value, const torch::jit::Value* self,
                                            const torch::jit::Module& owner);

// The attribute of a module that code outside its own methods reads or sets: by object, or by type
// where the code does not tell which module of that type it means.
struct OutsideUses {
  std::map<const c10::ivalue::Object*, std::string> objects;
  std::map<std::string, std::string> types;

  std::string find(const torch::jit::Module& module) const;  // empty where there is none
};
OutsideUses find_outside_uses(const torch::jit::Module& program);

}  // namespace mcompress
