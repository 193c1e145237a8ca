#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <torch/script.h>

#include "mcompress/base/output.h"
#include "mcompress/model/compressed_weight.h"
#include "mcompress/model/layer.h"

namespace mcompress {

// Loads a TorchScript archive in eval mode after scan_torchscript() has passed it. What the program
// prints goes to stderr. Throws Error(65).
torch::jit::Module load_program(const std::string& path, bool trust_code);

// The program's forward pass over one batch, without gradients. The function throws Error(65) where
// the program fails on the batch or does not return a tensor.
std::function<at::Tensor(const at::Tensor&)> program_forward(const torch::jit::Module& program);

// The layers of a program in the order of its modules. A layer whose weight other code reads, or
// whose methods do more than apply it, has its obstacle named.
std::vector<Layer> list_layers(const torch::jit::Module& program);

// A copy of `program` in which each named layer holds its compressed weight; the original is untouched and
// shares the other parameters. Every module on the way to a replaced layer gets a type of its own,
// since TorchScript modules of one class share theirs. The copy is for save_program(): int8 layers
// pack their weights when they are loaded.
torch::jit::Module replace_layers(const torch::jit::Module& program, const std::vector<Layer>& layers,
                                  const std::map<std::string, CompressedWeight>& weights, Runtime runtime);

// Bytes that save_program will write, to about 2 %: the members of the archive at `path` without the
// weights of the replaced layers, and what takes their place.
uint64_t predict_program_bytes(const std::string& path, const std::vector<Layer>& layers,
                               const std::map<std::string, CompressedWeight>& weights);

// Writes the program as a TorchScript archive without its debug records.
void save_program(const torch::jit::Module& program, OutputFile& file);

}  // namespace mcompress
