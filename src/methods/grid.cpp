#include "mcompress/methods/grid.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

constexpr float kMaxHalfPair = 63.75F;     // of 127.5: two roundings add at most 1 to the pair
constexpr float kToInteger = 12582912.0F;  // 1.5 * 2^23: adding it rounds half to even

// The compiler vectorizes the maximum of integers, and for |float| the bits have the same order.
int32_t magnitude_bits(float value) { return std::bit_cast<int32_t>(std::fabs(value)); }

// A row of a weight: `channels` times `kernel` values.
struct Row {
  const float* values;
  int64_t size, kernel;
};

// The scale at which no pair of channels exceeds its bound.
float pair_scale(const Row& row) {
  int32_t largest = 0;
  for (int64_t channel = 0; channel + 2 * row.kernel <= row.size; channel += 2 * row.kernel) {
    const float *even = row.values + channel, *odd = even + row.kernel;
    for (int64_t i = 0; i < row.kernel; ++i) {
      const float half_pair = 0.5F * std::fabs(even[i]) + 0.5F * std::fabs(odd[i]);  // cannot overflow
      largest = std::max(largest, std::bit_cast<int32_t>(half_pair));
    }
  }
  return std::bit_cast<float>(largest) / kMaxHalfPair;
}

float round_code(float value, float inverse, float low, float high) {
  return (std::min(std::max(value * inverse, low), high) + kToInteger) - kToInteger;
}

double squared_error(const Row& row, float scale, float low, float high) {
  constexpr int64_t kLanes = 16;  // independent sums, which the compiler computes side by side
  std::array<float, kLanes> sums{};
  const float inverse = 1.0F / scale;
  double total = 0;
  for (int64_t begin = 0; begin < row.size; begin += kLanes) {
    const int64_t lanes = std::min(kLanes, row.size - begin);
    for (int64_t i = 0; i < lanes; ++i) {
      const float value = row.values[begin + i];
      const float error = value - scale * round_code(value, inverse, low, high);
      sums[static_cast<size_t>(i)] += error * error;
    }
  }
  for (const float sum : sums) total += sum;
  return total;
}

// Of 81 scales from the largest to a fifth of it, the one with the least squared error.
float search_scale(const Row& row, float largest, float low, float high) {
  float best = largest;
  double least = squared_error(row, largest, low, high);
  for (int percent = 99; percent >= 20; --percent) {
    const float scale = largest * (static_cast<float>(percent) / 100.0F);
    if (scale < std::numeric_limits<float>::min()) break;
    const double error = squared_error(row, scale, low, high);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

// The scale of a row; 0 for a row of zeros.
float row_scale(const Row& row, const RowGrid& grid) {
  int32_t bits = 0;
  for (int64_t i = 0; i < row.size; ++i) bits = std::max(bits, magnitude_bits(row.values[i]));
  const auto [low, high] = code_range(grid.bits);
  const float scale = std::bit_cast<float>(bits) / static_cast<float>(high);
  if (grid.bits == 8) return grid.pairs ? std::max(scale, pair_scale(row)) : scale;
  if (!grid.search || scale == 0) return scale;
  return search_scale(row, scale, static_cast<float>(low), static_cast<float>(high));
}

void round_row(const float* row, int64_t columns, float scale, CodeRange range, int8_t* codes) {
  const auto low = static_cast<float>(range.low), high = static_cast<float>(range.high);
  for (int64_t i = 0; i < columns; ++i) {
    const float step = std::min(std::max(row[i] / scale, low), high);
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

CodeRange code_range(int bits) {
  constexpr int kMaxCode = 127;
  const int half = 1 << (bits - 1);
  return bits == 8 ? CodeRange{-kMaxCode, kMaxCode} : CodeRange{-half, half - 1};
}

IntChannel round_rows(const at::Tensor& weight, const at::Tensor& row_scale, int bits) {
  const at::Tensor scale = at::where(row_scale > 0, row_scale, at::ones_like(row_scale));
  at::Tensor codes = at::empty(weight.sizes(), at::kChar);
  auto* code = codes.mutable_data_ptr<int8_t>();
  const auto* scales = scale.const_data_ptr<float>();
  for_float_rows(weight, [&](int64_t row, const float* values, int64_t columns) {
    round_row(values, columns, scales[row], code_range(bits), code + row * columns);
  });
  return {std::move(codes), scale, bits};
}

at::Tensor row_scales(const at::Tensor& weight, const RowGrid& grid) {
  at::Tensor scale = at::empty({weight.size(0)}, at::kFloat);
  auto* scales = scale.mutable_data_ptr<float>();
  const int64_t kernel = weight.dim() < 3 ? 1 : weight[0][0].numel();
  for_float_rows(weight, [&](int64_t row, const float* values, int64_t columns) {
    scales[row] = row_scale({values, columns, kernel}, grid);
  });
  return scale;
}

IntChannel quantize_rows(const at::Tensor& weight, const RowGrid& grid) {
  return round_rows(weight, row_scales(weight, grid), grid.bits);
}

IntChannel quantize_tensor(const at::Tensor& weight, const RowGrid& grid) {
  const at::Tensor flat = weight.detach().reshape({1, -1});
  const at::Tensor scale = grid.search ? row_scales(flat, grid) : row_scales(weight, grid).max();
  return round_rows(weight, scale.view({1}).expand({weight.size(0)}).contiguous(), grid.bits);
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
