#pragma once

#include <string>

#include "mcompress/model/decoder.h"
#include "source.h"
#include "stages.h"

namespace mcompress {

constexpr int64_t kTokens = 1024;  // that are run together, whose states the caches hold

// Sets the layers that one tensor holds, packed in the computing type.
void set_layer(const StoredLayer& layer, const at::Tensor& weight, const DecoderCompute& compute,
               BlockWeights& block);

struct DecoderBlock::Impl {
  std::string path;
  const DecoderConfig& config;
  const WeightSource& source;
  int64_t block;
  DecoderCompute compute;
  BlockWeights weights;
  Rotation rotation;
  at::Tensor hidden;  // [n, length, width]
  int64_t first_window;
  at::Tensor between = {};  // of the attention or the feed-forward, [n, length, inputs of the next stage]

  BlockPass pass() const { return {config, block, weights, rotation}; }
  at::Tensor computing(const at::Tensor& states) const { return states.to(compute.type); }
  // What is left of values that are kept between stages.
  at::Tensor kept(const at::Tensor& values) const { return computing(values.to(hidden.scalar_type())); }
};

}  // namespace mcompress
