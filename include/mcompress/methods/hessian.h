#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace mcompress {

// Whether the processor multiplies bfloat16 faster than float32.
bool multiplies_bfloat16();

// The sum of x x^T over the inputs x of a layer: the Hessian of its squared error, of which a constant factor
// does not matter.
class HessianSum {
 public:
  // `int8`: products are those of inputs in 8 bits, of which 64 of a channel have one scale (int8_matrix.h).
  explicit HessianSum(int64_t channels, bool int8 = false);

  // Inputs [rows, channels]. Products of bfloat16 are added in float32, by the processor's own instruction
  // where it has one; those of other types are computed in float32. The same bytes for any number of threads.
  void add(const at::Tensor& inputs);

  int64_t rows() const { return rows_; }
  at::Tensor mean() const;  // float32 [channels, channels], over all rows

 private:
  at::Tensor sum_;  // float32 [channels, channels], right in the tiles of the upper triangle
  bool int8_;
  int64_t rows_ = 0;
};

}  // namespace mcompress
