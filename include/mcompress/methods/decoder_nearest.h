#pragma once

#include <cstdint>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/rounded_layer.h"
#include "mcompress/methods/run_checkpoint.h"

namespace mcompress {

class Decoder;

// How the layers of a language model are rounded to nearest.
struct DecoderNearestPlan {
  std::map<std::string, GroupGrid> layers;  // those that are rounded; the head may be one
  at::ScalarType states = at::kFloat;       // in which those of all windows are held
};

// Rounds the layers of a model to nearest, block after block, with scales that lose least where an error of a
// channel counts by the mean square of its inputs, on windows of token ids [windows, length] which run
// through the float model once (as the importance matrix of llama.cpp). A layer's losses are those of this
// measure, which knows no inputs that go together. Checkpoint, progress and errors as gptq_decoder().
int64_t nearest_decoder(const Decoder& model, const at::Tensor& ids, const DecoderNearestPlan& plan,
                        const CheckpointOptions& checkpoint);

}  // namespace mcompress
