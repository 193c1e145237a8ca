#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/rounded_layer.h"
#include "mcompress/methods/run_checkpoint.h"

namespace mcompress {

class Decoder;

// How the layers of a language model are rounded by AWQ.
struct DecoderAwqPlan {
  std::map<std::string, GroupGrid>
      layers;                            // those that are rounded; where a grid searches, ranges are clipped
  int64_t points = 20;                   // powers that are tried for the scales of a stage
  int64_t probed = 4;                    // windows on which a block's output is compared
  at::ScalarType states = at::kFloat;    // in which those of all windows are held
  std::optional<GptqOptions> gptq = {};  // where set, scaled weights are rounded by GPTQ, not to nearest
};

// Rounds the layers of a model by AWQ (arXiv:2306.00978), block after block, on windows of token ids
// [windows, length], which run through the float model once. Of each stage of a block whose layers are all
// rounded, the channels get the scale that loses least, and what gives them makes up for it:
//   q, k and v: the norm before them        output: v, where no keys are shared by heads
//   gate and up: the norm before them       down: up, where it is multiplied, or its activation is ReLU
// The scale is chosen by the loss on the Hessian; of the best for a norm, which more than one layer takes, by
// the error of the block's output. Checkpoint, progress and errors as gptq_decoder().
int64_t awq_decoder(const Decoder& model, const at::Tensor& ids, const DecoderAwqPlan& plan,
                    const CheckpointOptions& checkpoint);

}  // namespace mcompress
