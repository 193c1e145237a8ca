#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mcompress/methods/decoder_gptq.h"

namespace mcompress {

// The layers of a block on disk, as a file of the folder of a run.
void write_rounded_block(const std::string& folder, int64_t block, const std::string& fingerprint,
                         const std::vector<RoundedLayer>& layers);

// Empty where the run has not come so far. Throws Error(78) for another fingerprint.
std::optional<std::vector<RoundedLayer>> resumed_block(const CheckpointOptions& checkpoint, int64_t block);

}  // namespace mcompress
