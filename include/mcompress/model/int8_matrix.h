#pragma once

#include <ATen/core/Tensor.h>

namespace mcompress {

// Whether the processor has an instruction for sums of int8 products (AVX-512 VNNI), with which those of
// Int8Matrix take less time than products of bfloat16 or float32. Elsewhere they give the same, slowly.
bool multiplies_int8();

// A matrix [rows, depth] in int8: 64 values of a row beside each other, a share, have one scale, the largest
// of them by 127 (as the blocks of 32 of GGUF's Q8_0). Sums over a share are whole numbers; shares are added
// in float32 in one order, so that a product has the same bytes for any number of threads.
struct Int8Matrix {
  int64_t rows = 0, depth = 0;
  // Panels of 64 rows; missing rows and values are 0. A word is 4 codes of a row.
  at::Tensor codes;    // int32 [panels, shares, 16, 64]
  at::Tensor scales;   // float32 [panels, shares, 64]; not finite where a value of the share is not
  at::Tensor offsets;  // int32 [panels, shares, 64]: -128 times the sum of the codes
};

// `x`: float32 or bfloat16 [rows, depth].
Int8Matrix int8_rows(const at::Tensor& x);
// Of x^T: `x` is [depth, rows].
Int8Matrix int8_columns(const at::Tensor& x);

// left right^T, float32 [left rows, right rows], which have the same depth, and `bias` [right rows] where it
// is defined.
at::Tensor multiply(const Int8Matrix& left, const Int8Matrix& right, const at::Tensor& bias);

// Adds x x^T to `sum`, float32 [rows, rows]: right in the tiles of 64 rows and columns on and above the
// diagonal, the others stay.
void add_square(const Int8Matrix& x, const at::Tensor& sum);

}  // namespace mcompress
