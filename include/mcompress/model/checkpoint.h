#pragma once

#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/base/output.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/layer.h"

namespace mcompress {

// What a weight of a checkpoint without a program is, told from its name and rank: a matrix named
// like an embedding is one, any other matrix is a linear layer. False where it is no layer's weight.
bool guess_kind(const Array& array, LayerKind& kind);

// A view of rows [begin, end) of an array in its map; copied where the map is not aligned.
at::Tensor rows_of(const Array& array, int64_t begin, int64_t end);

// Quantizes some rows [n, columns], float32, on their own.
using QuantizeRows = std::function<Int8Channel(const at::Tensor& rows)>;

// Writes all arrays as safetensors: those of `chosen` (by index) as int8 `NAME` with a float32
// `NAME_scale` [rows, 1] beside, as compressed-tensors names them; the rest as they are. Rows are
// read, quantized and written a few megabytes at a time, so that memory does not grow with the
// file. Throws Error(65) naming an array that holds NaN or infinity.
void write_int8_safetensors(const CheckpointFiles& checkpoint, const std::vector<bool>& chosen,
                            const QuantizeRows& quantize, OutputFile& file);

}  // namespace mcompress
