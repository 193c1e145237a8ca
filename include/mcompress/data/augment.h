#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace mcompress {

// What is done to each training image on its own.
struct AugmentOptions {
  bool flip = false;  // left and right change sides for half of the images
  int64_t crop = 0;   // images move by up to so many pixels each way, zeros coming in
};

// A changed copy of images [n, channels, height, width]. The same seed gives the same changes.
at::Tensor augment(const at::Tensor& images, const AugmentOptions& options, uint64_t seed);

}  // namespace mcompress
