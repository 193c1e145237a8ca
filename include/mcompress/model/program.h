#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <torch/script.h>

#include "mcompress/base/output.h"
#include "mcompress/model/compressed_weight.h"
#include "mcompress/model/layer.h"

namespace mcompress {

// Loads a TorchScript archive in eval mode after scan_torchscript() has passed it. What the program
// prints goes to stderr. Throws Error: 65, or 71 where memory does not suffice.
torch::jit::Module load_program(const std::string& path, bool trust_code);

// The program's forward pass over one batch, hooks included. Throws Error(65) where the program fails on the
// batch or does not return a tensor.
at::Tensor run_program(torch::jit::Module& program, const at::Tensor& input);

// The same without gradients.
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

// A copy of `program` with other tensors in the place of some, such as "encoder.norm.weight", of the same
// shapes; everything else is shared.
torch::jit::Module replace_tensors(const torch::jit::Module& program,
                                   const std::map<std::string, at::Tensor>& tensors);

// Takes the input that a layer's weight is applied to, at each use of the layer; `layer` is its place in the
// list. Inputs are not kept: what the sink does not copy is gone.
using InputSink = std::function<void(size_t layer, const at::Tensor& input)>;

// The program's forward pass, for what it hands to `sink` on the way. Layers without methods are not seen.
std::function<void(const at::Tensor&)> capture_inputs(const torch::jit::Module& program,
                                                      const std::vector<Layer>& layers, InputSink sink);

// Makes the classes of these layers save their weight as a mask and the values that are not +0, where that
// is smaller, and expand it when they are loaded: in memory nothing changes. Weights that share their
// storage, and with them all layers of their class, are left alone. False where no class is left.
bool make_sparse(const torch::jit::Module& program, const std::set<std::string>& layers);

// Takes that back, so that the program is saved with the bytes that it had before make_sparse(). False where
// no layer of it is sparse.
bool make_dense(const torch::jit::Module& program);

// Gives the parameters and buffers of `to` the values of those in `from` that have the same name, shape and
// type, but for tensors whose elements share their memory. Returns their names.
std::vector<std::string> copy_values(const torch::jit::Module& from, const torch::jit::Module& to);

// The module at a path such as "encoder.fc1"; the program itself at the empty one.
torch::jit::Module module_at(const torch::jit::Module& program, const std::string& path);

// A program as LibTorch serializes it, in memory.
std::string serialize_program(const torch::jit::Module& program);

// The program as it would be after it was written and loaded.
torch::jit::Module reload_program(const torch::jit::Module& program);

// Writes a serialized program as a TorchScript archive, aligned and without its debug records.
void write_program(const std::string& serialized, OutputFile& file);
uint64_t count_program_bytes(const std::string& serialized);        // that write_program() will write
bool is_written_as(const std::string& serialized, Bytes expected);  // whether it would write these

}  // namespace mcompress
