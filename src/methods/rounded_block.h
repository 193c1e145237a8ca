#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mcompress/methods/rounded_layer.h"
#include "mcompress/methods/run_checkpoint.h"

namespace mcompress {

// A block on disk, as a file of the folder of a run.
void write_rounded_block(const std::string& folder, int64_t block, const std::string& fingerprint,
                         const RoundedBlock& rounded);

// Empty where the run has not come so far. Throws Error(78) for another fingerprint.
std::optional<RoundedBlock> resumed_block(const CheckpointOptions& checkpoint, int64_t block);

}  // namespace mcompress
