#pragma once

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace mcompress {

struct ImageOptions {
  double scale = 1.0 / 255.0;        // factor for every value
  std::vector<double> mean, stddev;  // one a channel, after scaling
  int64_t limit = 0;                 // first rows only; 0: all
};

// Labelled images, kept as bytes and normalized a batch at a time.
struct Images {
  at::Tensor pixels;  // uint8 [n, channels, height, width]
  at::Tensor labels;  // int64 [n]
  ImageOptions options;

  int64_t size() const;
  at::Tensor batch(int64_t begin, int64_t end) const;  // float32 [end - begin, c, h, w]
};

// Reads a CIFAR-10 binary file, or the images of an IDX pair: a folder that holds one pair of test
// files (t10k-*), plain or .gz, as dataset-fashion-mnist installs them. Throws Error(65 or 66).
Images load_images(const std::string& path, const ImageOptions& options);

}  // namespace mcompress
