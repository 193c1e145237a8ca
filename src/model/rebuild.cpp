#include "rebuild.h"

#include <torch/csrc/jit/api/function_impl.h>

#include "mcompress/model/program.h"

namespace mcompress {

namespace {

using c10::ClassType;
using c10::ClassTypePtr;
using torch::jit::Module;

// Every attribute read from a module has the type that the module's type now says.
void retype_attributes(torch::jit::Block* block) {
  for (torch::jit::Node* node : block->nodes()) {
    if (node->kind() == c10::prim::GetAttr) {
      if (const auto type = node->input(0)->type()->cast<ClassType>()) {
        node->output()->setType(type->getAttribute(node->s(c10::attr::name)));
      }
    }
    for (torch::jit::Block* inner : node->blocks()) retype_attributes(inner);
  }
}

// A method or hook of one class as one of another.
torch::jit::Function* copy_function(const torch::jit::Function& function, const ClassTypePtr& old_type,
                                    const ClassTypePtr& type) {
  const c10::QualifiedName name(*type->name(), function.name());
  if (auto* known = type->compilation_unit()->find_function(name)) return known;  // a hook set twice
  auto graph = torch::jit::toGraphFunction(function).graph()->copy();
  graph->inputs()[0]->setType(type);
  retype_attributes(graph->block());
  auto* copied = type->compilation_unit()->create_function(name, graph);
  copied->setSchema(function.getSchema().cloneWithRemappedTypes(
      [&](const c10::TypePtr& in) -> c10::TypePtr { return in == old_type ? type : in; }));
  return copied;
}

// Copies a program's tree.
class Rebuilder {
 public:
  Rebuilder(const std::map<std::string, Module>& replacements, const Edits& edits)
      : replacements_(replacements), edits_(edits) {}

  Module rebuild(const Module& module, const std::string& path) {
    const auto replaced = replacements_.find(path);
    if (replaced != replacements_.end()) return replaced->second;
    const auto known = done_.find(module._ivalue().get());
    if (known != done_.end()) return known->second;
    std::map<std::string, Module> children;
    bool changed = false;
    for (const auto& child : module.named_children()) {
      const Module built = rebuild(child.value, path.empty() ? child.name : path + "." + child.name);
      changed = changed || built._ivalue() != child.value._ivalue();
      children.emplace(child.name, built);
    }
    const auto edit = edits_.find(path);
    Module result = changed || edit != edits_.end() ? copy_with(module, children) : module;
    if (edit != edits_.end()) edit->second(result);
    done_.emplace(module._ivalue().get(), result);
    return result;
  }

 private:
  const std::map<std::string, Module>& replacements_;
  const Edits& edits_;
  std::map<const c10::ivalue::Object*, Module> done_;
};

}  // namespace

Module copy_with(const Module& module, const std::map<std::string, Module>& children) {
  const ClassTypePtr old_type = module.type();
  const auto unit = module._ivalue()->compilation_unit();
  const ClassTypePtr type = ClassType::create(unit->mangle(*old_type->name()), unit, /*is_module=*/true);
  unit->register_type(type);
  for (size_t i = 0; i < old_type->numConstants(); ++i) {
    type->addConstant(old_type->getConstantName(i), old_type->getConstant(i));
  }
  const auto object = c10::ivalue::Object::create(c10::StrongTypePtr(unit, type), old_type->numAttributes());
  for (size_t i = 0; i < old_type->numAttributes(); ++i) {
    const std::string& name = old_type->getAttributeName(i);
    const auto child = children.find(name);
    const c10::TypePtr attribute = child == children.end() ? old_type->getAttribute(i) : child->second.type();
    type->addAttribute(name, attribute, old_type->is_parameter(i), old_type->is_buffer(i));
    object->setSlot(
        i, child == children.end() ? module._ivalue()->getSlot(i) : c10::IValue(child->second._ivalue()));
  }
  for (const auto* method : old_type->methods()) type->addMethod(copy_function(*method, old_type, type));
  for (const auto* hook : old_type->getForwardPreHooks())
    type->addForwardPreHook(copy_function(*hook, old_type, type));
  for (const auto* hook : old_type->getForwardHooks())
    type->addForwardHook(copy_function(*hook, old_type, type));
  return Module(object);
}

Module replace_tensors(const Module& program, const std::map<std::string, at::Tensor>& tensors) {
  Edits edits;
  std::map<std::string, std::map<std::string, at::Tensor>> of_module;
  for (const auto& [name, tensor] : tensors) {
    const auto [module, attribute] = split_path(name);
    of_module[module][attribute] = tensor;
  }
  for (const auto& [module, values] : of_module) {
    edits[module] = [values](Module& copy) {
      for (const auto& [attribute, tensor] : values) copy.setattr(attribute, tensor);
    };
  }
  return replace_modules(program, {}, edits);
}

std::pair<std::string, std::string> split_path(const std::string& path) {
  const size_t dot = path.rfind('.');
  return dot == std::string::npos ? std::pair(std::string(), path)
                                  : std::pair(path.substr(0, dot), path.substr(dot + 1));
}

Module replace_modules(const Module& program, const std::map<std::string, Module>& replacements,
                       const Edits& edits) {
  return Rebuilder(replacements, edits).rebuild(program, "");
}

}  // namespace mcompress
