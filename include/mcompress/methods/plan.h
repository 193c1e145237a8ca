#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "mcompress/model/layer.h"

namespace mcompress {

// What is decided for one layer. An empty reason means that it is compressed.
struct Decision {
  std::string name;
  LayerKind kind;
  std::string reason;  // starts as the layer's own obstacle
  WeightIdentity identity;
  uint64_t bytes_before = 0;
};

// Regular expressions on layer names (--layer, --ignore); with none in `only`, all are meant.
struct Selection {
  std::vector<std::string> only, ignore;
};

// Fills in the reasons: the layer's own obstacle, what `obstacle_of` says of its kind, the selection,
// and a shared weight, which is compressed for all its layers or for none. Throws Error(2) where an
// expression matches no layer, Error(65) where nothing is left to compress in `model`.
void decide(std::vector<Decision>& plan, const Selection& selection,
            const std::function<std::string(LayerKind)>& obstacle_of, const std::string& model);

// Keeps chosen weights that lie over another one in memory in another shape: they cannot be changed apart
// from it. Of two chosen ones the first stays chosen.
void keep_overlapping(std::vector<Decision>& plan);

}  // namespace mcompress
