#pragma once

#include "mcompress/model/compressed_weight.h"
#include "mcompress/model/layer.h"

namespace mcompress {

// kRow: scale = max|row| / 127. kPair: also |code[2k]| + |code[2k + 1]| <= 128, so that a product
// with uint8 activations never saturates the 16-bit sums of CPUs without VNNI (255 * 128 < 2^15):
// the same numbers on every CPU.
enum class Int8Grid { kRow, kPair };

// Symmetric int8, one scale a row of `weight` [rows, ...]; a row of zeros has scale 1.
Int8Channel quantize_rows(const at::Tensor& weight, Int8Grid grid);

// Symmetric int8 with the one scale that the whole weight needs, repeated for every row.
Int8Channel quantize_tensor(const at::Tensor& weight, Int8Grid grid);

enum class WeightType { kInt8, kFloat16, kBFloat16 };

struct DynamicOptions {
  WeightType dtype = WeightType::kInt8;
  bool per_tensor = false;
  Runtime runtime = Runtime::kInt8;
};

// The weight of a linear layer or embedding as `options` ask for it. The grid is kPair where the
// int8 runtime will multiply it.
CompressedWeight compress_weight(const at::Tensor& weight, bool is_linear, const DynamicOptions& options);

struct QuantizationError {
  double sqnr_db, max_error;
};
QuantizationError error_of(const at::Tensor& weight, const CompressedWeight& compressed);

}  // namespace mcompress
