#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/methods/run_checkpoint.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// Steps of every run that goes through a model block after block.

// The states [windows, length, width] before the first block, in that type; some windows at a time, since an
// embedding may be wider.
at::Tensor embed_windows(const Decoder& model, const at::Tensor& ids, at::ScalarType type);

// What a run ends with that a signal stopped after so many blocks, which are kept.
Error stopped_after(const Interrupted& stop, int64_t block, int64_t blocks,
                    const CheckpointOptions& checkpoint);

}  // namespace mcompress
