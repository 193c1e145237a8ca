#pragma once

#include <nlohmann/json.hpp>

#include "mcompress/model/packed_folder.h"

namespace mcompress {

// The quantization_config that readers of the form ask for (GPTQModel, quantization/config.py; AutoAWQ,
// models/_config.py; compressed-tensors, quantization/quant_config.py).
nlohmann::ordered_json quantization_config(const PackedFolder& folder);

}  // namespace mcompress
