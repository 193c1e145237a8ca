#pragma once

#include <functional>

#include "mcompress/data/images.h"

namespace mcompress {

struct Share {
  int64_t count = 0, total = 0;
  double value() const { return static_cast<double>(count) / static_cast<double>(total); }
};

// The 95 % Wilson score interval of a share (Wilson 1927).
struct Interval {
  double low, high;
};
Interval wilson_interval(const Share& share);

struct Accuracy {
  Share top1, top5;
  double loss = 0;     // mean cross entropy, nats
  at::Tensor logits;   // float32 [n, classes]
  double seconds = 0;  // in forward passes alone
};

// Runs `forward` over all images in batches. Throws Error(65) where the outputs are no logits of
// the labels, or not finite.
Accuracy measure_accuracy(const std::function<at::Tensor(const at::Tensor&)>& forward, const Images& images,
                          int64_t batch_size);

// Samples of which both models rank the same class first, and the SQNR of the second's outputs, dB.
Share agreement(const Accuracy& reference, const Accuracy& other);
double output_sqnr_db(const Accuracy& reference, const Accuracy& other);

}  // namespace mcompress
