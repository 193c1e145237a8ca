#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mcompress/model/packed_layer.h"
#include "mcompress/model/packed_verify.h"

namespace mcompress {

// What a configuration says of a layer.
struct LayerScheme {
  int64_t bits = 0, group_size = 0;  // 0: it does not say
  bool symmetric = true;
  bool act_order = false;  // of GPTQ only
};

// The least bits that hold its codes and zero points less the middle.
int code_width(const IntGroup& weight);

// Findings about its codes, scales, zero points and groups.
std::vector<Finding> check_values(PackedForm form, const std::string& layer, const IntGroup& weight,
                                  const LayerScheme& scheme);

}  // namespace mcompress
