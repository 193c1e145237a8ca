#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <torch/script.h>

#include "mcompress/base/output.h"
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

// How a replaced linear layer computes. kInt8: uint8 activations, one range a row, by oneDNN's
// int8 kernels. kPortable: weights are dequantized when used, plain aten operators only.
enum class Runtime { kInt8, kPortable };

// A copy of `program` in which each named layer holds int8 weights; the original is untouched and
// shares the other parameters. Every module on the way to a replaced layer gets a type of its own,
// since TorchScript modules of one class share theirs.
torch::jit::Module replace_layers(const torch::jit::Module& program, const std::vector<Layer>& layers,
                                  const std::map<std::string, Int8Channel>& weights, Runtime runtime);

// Writes the program as a TorchScript archive without its debug records.
void save_program(const torch::jit::Module& program, OutputFile& file);

}  // namespace mcompress
