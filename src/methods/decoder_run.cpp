#include "decoder_run.h"

#include <algorithm>
#include <optional>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/methods/hessian.h"
#include "rounded_block.h"

namespace mcompress {

at::Tensor embed_windows(const Decoder& model, const at::Tensor& ids, at::ScalarType type) {
  constexpr int64_t kWindows = 4;
  at::Tensor states;
  for (int64_t begin = 0; begin < ids.size(0); begin += kWindows) {
    const at::Tensor part = model.embed(ids.slice(0, begin, std::min(begin + kWindows, ids.size(0))));
    if (begin == 0) states = at::empty({ids.size(0), ids.size(1), part.size(2)}, type);
    states.slice(0, begin, begin + part.size(0)).copy_(part);
  }
  return states;
}

void for_head_inputs(const Decoder& model, const at::Tensor& states,
                     const std::function<void(const at::Tensor& inputs)>& use) {
  for (int64_t i = 0; i < states.size(0); ++i) {
    check_interrupt();
    use(model.head_inputs(states[i]));
  }
}

at::Tensor head_hessian(const Decoder& model, const at::Tensor& states) {
  HessianSum sum(model.config().width, model.compute().int8_layers);
  for_head_inputs(model, states, [&](const at::Tensor& inputs) { sum.add(inputs); });
  return sum.mean();
}

int64_t run_blocks(const BlockMethod& method, int64_t blocks, bool head, const CheckpointOptions& checkpoint,
                   Progress& progress) {
  int64_t kept = 0, block = 0;
  try {
    for (; block < blocks + (head ? 1 : 0); ++block) {
      const auto done = checkpoint.resume ? resumed_block(checkpoint, block) : std::nullopt;
      if (!done) {
        write_rounded_block(checkpoint.path, block, checkpoint.fingerprint, method.round(block));
        continue;
      }
      progress.step(static_cast<int64_t>(done->layers.size()));
      if (block == blocks) break;
      method.pass(block, *done);
      ++kept;
    }
  } catch (const Interrupted& stop) {
    if (block == 0) throw;
    accept_interrupt();
    throw error(Exit::kResumable,
                "stopped by signal {} after block {} of {}; the same command with --resume goes on from '{}'",
                stop.signal, block, blocks, checkpoint.path);
  }
  return kept;
}

}  // namespace mcompress
