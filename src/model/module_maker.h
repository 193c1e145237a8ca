#pragma once

#include <map>
#include <string>
#include <vector>

#include <torch/script.h>

namespace mcompress {

// What stands in for a layer: a class by its name and TorchScript source, and what one object of it holds.
struct Replacement {
  std::string name;
  std::string forward;  // source of one method, its name left open
  std::string pack;     // source of pack(), which makes what is not stored, with its state; or empty
  std::map<std::string, at::Tensor> buffers = {};
  std::map<std::string, c10::IValue> attributes = {};  // beside the buffers
};

// What a class stores of its objects, in a file.
struct StateField {
  std::string name, type;
};
// `pack` followed by the methods that store these fields alone and call pack() when they are loaded: packed
// weights are opaque to the pickler.
std::string with_state(const std::string& pack, const std::vector<StateField>& fields);

// Makes the modules; those of one class share it, which keeps files small and their loading short.
class ModuleMaker {
 public:
  // A module with the named methods, all of which do what `replacement` does.
  torch::jit::Module make(const Replacement& replacement, const std::vector<std::string>& methods);

 private:
  std::map<std::string, torch::jit::Module> first_of_class_;  // by name and source
};

}  // namespace mcompress
