#include "mcompress/data/augment.h"

#include <random>
#include <vector>

#include <ATen/ATen.h>

namespace mcompress {

at::Tensor augment(const at::Tensor& images, const AugmentOptions& options, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int64_t crop = options.crop, height = images.size(2), width = images.size(3);
  const at::Tensor padded = crop > 0 ? at::constant_pad_nd(images, {crop, crop, crop, crop}) : images;
  std::vector<at::Tensor> changed;
  for (int64_t i = 0; i < images.size(0); ++i) {
    at::Tensor image = padded[i];
    if (crop > 0) {
      const auto choices = static_cast<uint64_t>(2 * crop + 1);
      const auto down = static_cast<int64_t>(random() % choices),
                 right = static_cast<int64_t>(random() % choices);
      image = image.narrow(1, down, height).narrow(2, right, width);
    }
    if (options.flip && random() % 2 == 1) image = image.flip(2);
    changed.push_back(image);
  }
  return at::stack(changed);
}

}  // namespace mcompress
