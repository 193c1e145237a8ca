#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>

#include <torch/script.h>

namespace mcompress {

// A module of a new type with the same attributes and methods, and other children where `children` names
// them.
torch::jit::Module copy_with(const torch::jit::Module& module,
                             const std::map<std::string, torch::jit::Module>& children);

// What is changed in the copy of a module, whose type is its own.
using Edits = std::map<std::string, std::function<void(torch::jit::Module& copy)>>;

// A copy of `program` with other modules at some paths, such as "encoder.fc1", and edited ones at others.
// Every module on the way to one gets a type of its own; all others, and all tensors, are shared.
torch::jit::Module replace_modules(const torch::jit::Module& program,
                                   const std::map<std::string, torch::jit::Module>& replacements,
                                   const Edits& edits = {});

// "encoder.fc1" in "encoder" and "fc1".
std::pair<std::string, std::string> split_path(const std::string& path);

}  // namespace mcompress
