#pragma once

#include "mcompress/model/compressed_weight.h"

namespace mcompress {

// How weights are rounded. 8 bits: codes from -127 to 127, scale = max|row| / 127. Fewer: codes from
// -2^(bits - 1), scale = max|row| / (2^(bits - 1) - 1).
struct RowGrid {
  int bits = 8;
  // 8 bits only: |code| of input channels 2k and 2k + 1 add up to at most 128, so that a product with uint8
  // activations never saturates the 16-bit sums of CPUs without VNNI (255 * 128 < 2^15): the same numbers on
  // every CPU.
  bool pairs = false;
  // Fewer than 8 bits only: the scale, down to a fifth of that, which gives the least squared error.
  bool search = false;
};

// Symmetric integers, one scale a row of `weight` [rows, channels, ...], rounded half to even; a row of zeros
// has scale 1. The weight must be finite.
IntChannel quantize_rows(const at::Tensor& weight, const RowGrid& grid);

// The same with the one scale that the whole weight needs, repeated for every row.
IntChannel quantize_tensor(const at::Tensor& weight, const RowGrid& grid);

// The scales that quantize_rows() takes, float32 [rows]; 0 for a row of zeros.
at::Tensor row_scales(const at::Tensor& weight, const RowGrid& grid);

// The codes for given scales, float32 [rows].
IntChannel round_rows(const at::Tensor& weight, const at::Tensor& scale, int bits);

// Lowest and highest code.
struct CodeRange {
  int low, high;
};
CodeRange code_range(int bits);

// What compression did to a weight: signal to quantization noise in decibel (infinite where nothing
// was lost), and the largest |error| of an element.
struct QuantizationError {
  double sqnr_db, max_error;
};
QuantizationError error_of(const at::Tensor& weight, const CompressedWeight& compressed);

}  // namespace mcompress
