#pragma once

#include <cstdint>
#include <functional>

#include <ATen/core/Tensor.h>

#include "mcompress/base/progress.h"
#include "mcompress/methods/rounded_layer.h"
#include "mcompress/methods/run_checkpoint.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// What every method shares that goes through a model block after block.

// The states [windows, length, width] before the first block, in that type; some windows at a time, since an
// embedding may be wider.
at::Tensor embed_windows(const Decoder& model, const at::Tensor& ids, at::ScalarType type);

// Gives `use` the inputs [length, width] of the head, a window at a time, the states being those behind the
// last block; and their Hessian.
void for_head_inputs(const Decoder& model, const at::Tensor& states,
                     const std::function<void(const at::Tensor& inputs)>& use);
at::Tensor head_hessian(const Decoder& model, const at::Tensor& states);

// How a method goes through a block, whose states become those behind it. Block number `blocks` is the head.
struct BlockMethod {
  std::function<RoundedBlock(int64_t block)> round;
  std::function<void(int64_t block, const RoundedBlock& rounded)> pass;  // as an earlier run left it
};

// Goes through all blocks, and the head where `head` says so, and keeps each in the checkpoint when it is
// done. Returns how many were there already. Throws Error(75) where a signal stops it and blocks are done.
int64_t run_blocks(const BlockMethod& method, int64_t blocks, bool head, const CheckpointOptions& checkpoint,
                   Progress& progress);

}  // namespace mcompress
