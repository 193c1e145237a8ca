#pragma once

#include "config_keys.h"
#include "mcompress/model/packed_folder.h"

namespace mcompress {

// What a config.json says: GPTQ and AWQ of its weights, and compressed-tensors of packed and 8-bit ones.
// Throws Error(65) for others, which cannot be run.
FolderQuantization read_quantization(const ConfigKeys& keys);

}  // namespace mcompress
