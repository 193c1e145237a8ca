#include "mcompress/model/pieces.h"

#include <algorithm>
#include <bit>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace mcompress {

Bytes bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

void for_row_pieces(int64_t first, int64_t last, int64_t columns,
                    const std::function<void(int64_t begin, int64_t end)>& use) {
  constexpr int64_t kPieceElements = int64_t{1} << 16;
  const int64_t piece = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, columns));
  for (int64_t begin = first; begin < last; begin += piece) use(begin, std::min(begin + piece, last));
}

namespace {

// Types that are stored but hardly computed with, as one that is.
at::Tensor as_counted(const at::Tensor& part) {
  switch (part.scalar_type()) {
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e4m3fnuz:
    case at::kFloat8_e5m2:
    case at::kFloat8_e5m2fnuz:
    case at::kFloat8_e8m0fnu: return part.to(at::kFloat);
    case at::kUInt16:
    case at::kUInt32:
    case at::kUInt64: return part.to(at::kLong);
    default: return part;
  }
}

// The usual cases in one pass.
ElementCount count_floats(const float* values, int64_t size) {
  constexpr int32_t kExponent = 0x7f800000;  // all ones in NaN and infinity
  ElementCount count{size, 0, 0};
  for (int64_t i = 0; i < size; ++i) {
    const auto bits = std::bit_cast<int32_t>(values[i]);
    count.nonzeros += (bits & INT32_MAX) != 0 ? 1 : 0;
    count.non_finite += (bits & kExponent) == kExponent ? 1 : 0;
  }
  return count;
}

ElementCount count_codes(const int8_t* codes, int64_t size) {
  return {size, size - std::count(codes, codes + size, int8_t{0}), 0};
}

}  // namespace

at::Tensor by_rows(const at::Tensor& values, const at::Tensor& rows) {
  std::vector<int64_t> shape(static_cast<size_t>(rows.dim()), 1);
  shape[0] = values.numel();
  return values.view(shape);
}

ElementCount count_elements_of(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kFloat && tensor.is_contiguous())
    return count_floats(tensor.const_data_ptr<float>(), tensor.numel());
  if (tensor.scalar_type() == at::kChar && tensor.is_contiguous())
    return count_codes(tensor.const_data_ptr<int8_t>(), tensor.numel());
  ElementCount count;
  const at::Tensor rows = tensor.detach().is_contiguous() ? tensor.detach().view({-1, 1}) : tensor.detach();
  const int64_t columns = rows.dim() == 0 || rows.size(0) == 0 ? 1 : rows.numel() / rows.size(0);
  const auto add = [&count](const at::Tensor& stored) {
    const at::Tensor part = as_counted(stored);
    count.elements += part.numel();
    count.nonzeros += part.count_nonzero().item<int64_t>();
    if (part.is_floating_point() || part.is_complex())
      count.non_finite += part.numel() - part.isfinite().sum().item<int64_t>();
  };
  if (rows.dim() == 0) {
    add(rows);
    return count;
  }
  for_row_pieces(0, rows.size(0), columns,
                 [&](int64_t begin, int64_t end) { add(rows.slice(0, begin, end)); });
  return count;
}

namespace {

template <typename Word>
void take_words(const at::Tensor& matrix, const at::Tensor& columns, at::Tensor& to) {
  const int64_t width = matrix.size(1), count = columns.numel();
  const int64_t* place = columns.const_data_ptr<int64_t>();
  const auto* from = static_cast<const Word*>(matrix.const_data_ptr());
  auto* words = static_cast<Word*>(to.data_ptr());
  constexpr int64_t kGrain = 8;
  at::parallel_for(0, matrix.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t j = 0; j < count; ++j) words[row * count + j] = from[row * width + place[j]];
    }
  });
}

}  // namespace

at::Tensor take_columns(const at::Tensor& given, const at::Tensor& columns) {
  const at::Tensor matrix = given.contiguous(), places = columns.contiguous();
  at::Tensor result = at::empty({matrix.size(0), places.numel()}, matrix.options());
  switch (matrix.element_size()) {
    case 1: take_words<uint8_t>(matrix, places, result); break;
    case 2: take_words<uint16_t>(matrix, places, result); break;
    case 4: take_words<uint32_t>(matrix, places, result); break;
    default: take_words<uint64_t>(matrix, places, result); break;
  }
  return result;
}

}  // namespace mcompress
