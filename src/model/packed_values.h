#pragma once

#include <string>
#include <vector>

#include "mcompress/model/packed_layer.h"
#include "mcompress/model/packed_verify.h"
#include "packed_schemes.h"

namespace mcompress {

// The least bits that hold its codes and zero points less the middle.
int code_width(const IntGroup& weight);

// Findings about its codes, scales, zero points and groups.
std::vector<Finding> check_values(PackedForm form, const std::string& layer, const IntGroup& weight,
                                  const LayerScheme& scheme);

}  // namespace mcompress
