#include "decoder_run.h"

#include <algorithm>

#include <ATen/ATen.h>

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

Error stopped_after(const Interrupted& stop, int64_t block, int64_t blocks,
                    const CheckpointOptions& checkpoint) {
  accept_interrupt();
  return error(Exit::kResumable,
               "stopped by signal {} after block {} of {}; the same command with --resume goes on from '{}'",
               stop.signal, block, blocks, checkpoint.path);
}

}  // namespace mcompress
