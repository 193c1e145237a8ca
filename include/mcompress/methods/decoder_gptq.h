#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/rounded_layer.h"
#include "mcompress/methods/run_checkpoint.h"

namespace mcompress {

class Decoder;

// How the layers of a language model are rounded.
struct DecoderGptqPlan {
  GptqOptions options;                      // all but the grid
  std::map<std::string, GroupGrid> layers;  // those that are rounded; the head may be one
  // Each stage of a block is rounded before the next one is run, so that it makes up for what came before.
  // Else all layers of a block see what its float ones give.
  bool true_sequential = true;
  at::ScalarType states = at::kFloat;  // in which those of all windows are held: the model's own or narrower
};

// Rounds the layers of a model by GPTQ, block after block, on windows of token ids [windows, length] which
// run through what is rounded already: one forward pass in the computing type of the model. A block's layers
// are written to `checkpoint`, a folder, when it is done; a resumed run takes them from there, and ends with
// the same bytes. Tells of each layer in a line of progress. Returns how many blocks were done already.
// Memory: the states of all windows, one block, and the Hessian of a stage. Throws Error(75) where a signal
// stops it and blocks are done, Error(65) naming the layer for weights and inputs that are not finite.
int64_t gptq_decoder(const Decoder& model, const at::Tensor& ids, const DecoderGptqPlan& plan,
                     const CheckpointOptions& checkpoint);

}  // namespace mcompress
