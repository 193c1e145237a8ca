#pragma once

#include <string>
#include <vector>

#include "block.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// A linear layer as a checkpoint stores it, and the layers of a block whose rows it holds after each other:
// one, but of q, k and v or gate and up in one tensor.
struct StoredLayer {
  struct Part {
    Projection BlockWeights::*layer;
    int64_t outputs;
  };
  std::string name;  // without that of the block
  std::vector<Part> parts;
  int64_t inputs;
  bool biased;

  int64_t outputs() const;
};

// Those of each block, by stage.
std::vector<std::vector<StoredLayer>> stored_layers(const DecoderConfig& config);

}  // namespace mcompress
