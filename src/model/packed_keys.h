#pragma once

#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "mcompress/model/packed_layer.h"
#include "mcompress/model/packed_verify.h"

namespace mcompress {

// Keys of a quantization_config that readers of the form need and do not find, or find of another type: one
// of those some reader stops at, or takes for its default. read_quantization() must know the configuration.
std::vector<Finding> check_keys(PackedForm form, const nlohmann::json& quantization);

}  // namespace mcompress
