#include "mcompress/methods/grid.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

constexpr float kMaxCode = 127.0F;
constexpr float kMaxHalfPair = 63.75F;  // of 127.5: two roundings add at most 1 to the pair

// The compiler vectorizes the maximum of integers, and for |float| the bits have the same order.
int32_t magnitude_bits(float value) { return std::bit_cast<int32_t>(std::fabs(value)); }

// The smallest scale that keeps the row's codes on the grid; 0 for a row of zeros.
float row_scale(const float* row, int64_t columns, Int8Grid grid) {
  int32_t largest = 0, largest_pair = 0;
  for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, magnitude_bits(row[i]));
  const float scale = std::bit_cast<float>(largest) / kMaxCode;
  if (grid == Int8Grid::kRow) return scale;
  for (int64_t i = 0; i + 1 < columns; i += 2) {
    const float half_pair = 0.5F * std::fabs(row[i]) + 0.5F * std::fabs(row[i + 1]);  // cannot overflow
    largest_pair = std::max(largest_pair, std::bit_cast<int32_t>(half_pair));
  }
  return std::max(scale, std::bit_cast<float>(largest_pair) / kMaxHalfPair);
}

void round_row(const float* row, int64_t columns, float scale, int8_t* codes) {
  constexpr float kToInteger = 12582912.0F;  // 1.5 * 2^23: adding it rounds half to even
  for (int64_t i = 0; i < columns; ++i) {
    const float step = std::min(std::max(row[i] / scale, -kMaxCode), kMaxCode);
    codes[i] = static_cast<int8_t>(static_cast<int32_t>((step + kToInteger) - kToInteger));
  }
}

// Calls `use` with each row of a weight as float32; rows are independent and spread over threads.
template <typename Use>
void for_float_rows(const at::Tensor& weight, Use use) {
  const at::Tensor rows = weight.detach().flatten(1);
  const int64_t columns = rows.size(1);
  at::parallel_for(0, rows.size(0), 1, [&](int64_t first, int64_t last) {
    for_row_pieces(first, last, columns, [&](int64_t begin, int64_t end) {
      const at::Tensor piece = rows.slice(0, begin, end).to(at::kFloat).contiguous();
      const float* data = piece.const_data_ptr<float>();
      for (int64_t row = begin; row < end; ++row) use(row, data + (row - begin) * columns, columns);
    });
  });
}

// [rows]; 0 for a row of zeros.
at::Tensor row_scales(const at::Tensor& weight, Int8Grid grid) {
  at::Tensor scale = at::empty({weight.size(0)}, at::kFloat);
  auto* scales = scale.mutable_data_ptr<float>();
  for_float_rows(weight, [&](int64_t row, const float* values, int64_t columns) {
    scales[row] = row_scale(values, columns, grid);
  });
  return scale;
}

Int8Channel round_to_codes(const at::Tensor& weight, at::Tensor scale) {
  scale = at::where(scale > 0, scale, at::ones_like(scale));
  at::Tensor codes = at::empty(weight.sizes(), at::kChar);
  auto* code = codes.mutable_data_ptr<int8_t>();
  const auto* scales = scale.const_data_ptr<float>();
  for_float_rows(weight, [&](int64_t row, const float* values, int64_t columns) {
    round_row(values, columns, scales[row], code + row * columns);
  });
  return {std::move(codes), std::move(scale)};
}

struct ErrorSum {
  double signal = 0, noise = 0;
  int32_t largest_bits = 0;
};

ErrorSum sum_errors(const float* exact, const float* stored, int64_t size) {
  constexpr int64_t kLanes = 8;  // independent sums, which the compiler computes side by side
  std::array<double, kLanes> signal{}, noise{};
  ErrorSum sum;
  for (int64_t begin = 0; begin < size; begin += kLanes) {
    const int64_t lanes = std::min(kLanes, size - begin);
    for (int64_t i = 0; i < lanes; ++i) {
      const float value = exact[begin + i], error = stored[begin + i] - value;
      const auto lane = static_cast<size_t>(i);
      signal[lane] += static_cast<double>(value) * value;
      noise[lane] += static_cast<double>(error) * error;
      sum.largest_bits = std::max(sum.largest_bits, magnitude_bits(error));
    }
  }
  sum.signal = std::accumulate(signal.begin(), signal.end(), 0.0);
  sum.noise = std::accumulate(noise.begin(), noise.end(), 0.0);
  return sum;
}

}  // namespace

Int8Channel quantize_rows(const at::Tensor& weight, Int8Grid grid) {
  return round_to_codes(weight, row_scales(weight, grid));
}

Int8Channel quantize_tensor(const at::Tensor& weight, Int8Grid grid) {
  const at::Tensor scale = row_scales(weight, grid);
  return round_to_codes(weight, scale.max().expand_as(scale).contiguous());
}

QuantizationError error_of(const at::Tensor& weight, const CompressedWeight& compressed) {
  const at::Tensor rows = weight.detach().flatten(1);
  // One sum a row, added in order: the same numbers for any count of threads.
  std::vector<ErrorSum> sums(static_cast<size_t>(rows.size(0)));
  at::parallel_for(0, rows.size(0), 1, [&](int64_t first, int64_t last) {
    for_row_pieces(first, last, rows.size(1), [&](int64_t begin, int64_t end) {
      const at::Tensor exact = rows.slice(0, begin, end).to(at::kFloat).contiguous();
      const at::Tensor stored = dequantize_rows(compressed, begin, end).contiguous();
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = (row - begin) * rows.size(1);
        sums[static_cast<size_t>(row)] =
            sum_errors(exact.const_data_ptr<float>() + at, stored.const_data_ptr<float>() + at, rows.size(1));
      }
    });
  });
  ErrorSum total;
  for (const ErrorSum& sum : sums) {
    total.signal += sum.signal;
    total.noise += sum.noise;
    total.largest_bits = std::max(total.largest_bits, sum.largest_bits);
  }
  return {10.0 * std::log10(total.signal / total.noise), std::bit_cast<float>(total.largest_bits)};
}

}  // namespace mcompress
