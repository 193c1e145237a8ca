#pragma once

#include "config_keys.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// Reads the quantization_config of a config.json, if there is one: what GPTQ says of its weights, and
// compressed-tensors of 8-bit ones. Throws Error(65) for others, which cannot be run.
void read_quantization(const ConfigKeys& keys, DecoderConfig& config);

}  // namespace mcompress
