#pragma once

#include <ATen/core/Tensor.h>

#include "mcompress/model/layer.h"

namespace mcompress {

// The Euclidean norm of each input feature of a layer over all that it was given, gathered a batch at a
// time. Features of a linear layer are the last dimension, those of a convolution its input channels, which
// count for every place of the kernel.
class InputNorm {
 public:
  explicit InputNorm(const Layer& layer);

  void add(
      const at::Tensor& input);  // throws Error(65) where it does not fit the layer, or holds NaN or infinity

  // float32 [groups, columns], for the columns of the weight as a matrix; groups is 1 but for grouped
  // convolutions. Undefined where nothing was added.
  at::Tensor norm() const;

 private:
  std::string name_;
  int64_t inputs_, kernel_, spatial_;  // features a group; places of the kernel; dimensions of it
  at::Tensor squares_;                 // float64 [groups * inputs]
};

}  // namespace mcompress
