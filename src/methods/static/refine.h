#pragma once

#include <map>

#include "mcompress/methods/static.h"

namespace mcompress {

// Weights whose scales have the least squared error of the layer's outputs on the first rows of `data`, by
// index of the layers that these reach; embeddings have none.
std::map<size_t, IntChannel> search_weights(FoldedProgram& program, const Dataset& data,
                                            const StaticOptions& options);

}  // namespace mcompress
