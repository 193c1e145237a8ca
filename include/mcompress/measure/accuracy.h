#pragma once

#include "mcompress/data/dataset.h"
#include "mcompress/measure/latency.h"

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
  double loss = 0;         // mean cross entropy, nats
  double loss_margin = 0;  // half of its 95 % interval
  at::Tensor logits;       // float32 [n, classes]
};

// Runs `forward` over all samples in batches. Throws Error(65) where the outputs are no logits of
// the labels, or not finite.
Accuracy measure_accuracy(const Forward& forward, const Dataset& data, int64_t batch_size);

// Samples of which both models rank the same class first, and the SQNR of the second's outputs, dB.
Share agreement(const Accuracy& reference, const Accuracy& other);
double output_sqnr_db(const Accuracy& reference, const Accuracy& other);

}  // namespace mcompress
