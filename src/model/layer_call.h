#pragma once

#include "mcompress/model/open_program.h"

namespace mcompress {

// While this lives, the operator mcompress::call(layer, input) of any program is `function`. One at a time.
class LayerCalls {
 public:
  explicit LayerCalls(const LayerFunction& function);
  ~LayerCalls();
  LayerCalls(const LayerCalls&) = delete;
  LayerCalls& operator=(const LayerCalls&) = delete;
};

}  // namespace mcompress
