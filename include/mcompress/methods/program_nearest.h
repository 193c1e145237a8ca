#pragma once

#include <map>
#include <string>
#include <vector>

#include "mcompress/methods/rounded_layer.h"
#include "mcompress/model/layer.h"

namespace mcompress {

// Rounds layers of a program to nearest by their weights alone: those that have a grid, convolutions by their
// weight [rows, channels * places of the kernel]. Layers that share a weight share what becomes of it. Throws
// Error(65) naming the layer for weights that are not finite.
RoundedProgram nearest_program(const std::vector<Layer>& layers,
                               const std::map<std::string, GroupGrid>& grids);

}  // namespace mcompress
