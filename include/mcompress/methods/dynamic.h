#pragma once

#include "mcompress/model/layer.h"

namespace mcompress {

// kRow: scale = max|row| / 127. kPair: also |code[2k]| + |code[2k + 1]| <= 128, so that a product
// with uint8 activations never saturates the 16-bit sums of CPUs without VNNI (255 * 128 < 2^15):
// the same numbers on every CPU.
enum class Int8Grid { kRow, kPair };

// Symmetric int8, one scale a row of `weight` [rows, ...]; a row of zeros has scale 1.
Int8Channel quantize_rows(const at::Tensor& weight, Int8Grid grid);

struct QuantizationError {
  double sqnr_db, max_error;
};
QuantizationError error_of(const at::Tensor& weight, const Int8Channel& quantized);

}  // namespace mcompress
