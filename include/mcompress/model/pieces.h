#pragma once

#include <cstdint>
#include <functional>

#include <ATen/core/Tensor.h>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

// Calls `use` with [begin, end) until the rows [first, last) of `columns` elements are covered, a piece
// fitting a core's cache, so that temporaries stay small whatever the size of the tensor.
void for_row_pieces(int64_t first, int64_t last, int64_t columns,
                    const std::function<void(int64_t begin, int64_t end)>& use);

constexpr double kLargestHalf = 65504;  // number of float16

// The memory of a tensor whose elements lie one after the other.
Bytes bytes_of(const at::Tensor& tensor);

// One value a row, shaped to be multiplied with a tensor [rows, ...].
at::Tensor by_rows(const at::Tensor& values, const at::Tensor& rows);

// Elements of a tensor of any shape and dtype, and how many are not zero, NaN or infinite.
struct ElementCount {
  int64_t elements = 0, nonzeros = 0, non_finite = 0;
};
ElementCount count_elements_of(const at::Tensor& tensor);

// Columns of a matrix, of any type, in that order; at::index_select() has one thread.
at::Tensor take_columns(const at::Tensor& matrix, const at::Tensor& columns);

}  // namespace mcompress
