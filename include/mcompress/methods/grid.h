#pragma once

#include "mcompress/model/compressed_weight.h"

namespace mcompress {

// kRow: scale = max|row| / 127. kPair: also |code[2k]| + |code[2k + 1]| <= 128, so that a product
// with uint8 activations never saturates the 16-bit sums of CPUs without VNNI (255 * 128 < 2^15):
// the same numbers on every CPU.
enum class Int8Grid { kRow, kPair };

// Symmetric int8, one scale a row of `weight` [rows, ...], codes rounded half to even; a row of zeros
// has scale 1. The weight must be finite.
Int8Channel quantize_rows(const at::Tensor& weight, Int8Grid grid);

// Symmetric int8 with the one scale that the whole weight needs, repeated for every row.
Int8Channel quantize_tensor(const at::Tensor& weight, Int8Grid grid);

// What compression did to a weight: signal to quantization noise in decibel (infinite where nothing
// was lost), and the largest |error| of an element.
struct QuantizationError {
  double sqnr_db, max_error;
};
QuantizationError error_of(const at::Tensor& weight, const CompressedWeight& compressed);

}  // namespace mcompress
