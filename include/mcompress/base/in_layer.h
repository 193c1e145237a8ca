#pragma once

#include <string>

#include "mcompress/base/error.h"

namespace mcompress {

// What `step` returns; what it throws is told with the name of the layer that it works on.
template <typename Step>
auto in_layer(const std::string& layer, const Step& step) {
  try {
    return step();
  } catch (const Error& failure) {
    throw error(failure.code(), "layer '{}': {}", layer, failure.what());
  }
}

}  // namespace mcompress
