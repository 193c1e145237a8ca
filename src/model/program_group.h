#pragma once

#include <string>

#include "mcompress/model/compressed_weight.h"
#include "mcompress/model/layer.h"
#include "module_maker.h"

namespace mcompress {

// A linear layer or convolution whose weight lies in the file as codes in groups, and is float32 when it is
// loaded.
Replacement group_replacement(const Layer& layer, const IntGroup& weight);

}  // namespace mcompress
