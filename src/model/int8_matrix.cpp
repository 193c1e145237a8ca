#include "mcompress/model/int8_matrix.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include <ATen/ATen.h>

#include "mcompress/base/wide.h"
#include "mcompress/model/tasks.h"
#include "mcompress/model/upper_tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mcompress {

namespace {

constexpr int64_t kShare = kTile, kPanel = kTile, kCodes = 4, kSteps = kShare / kCodes;
constexpr float kLargest = 127;
constexpr int32_t kRaised = 128;

// One share of the rows of one panel.
struct SharePlace {
  uint32_t* codes;  // [kSteps, kPanel]
  float* scales;
  int32_t* offsets;

  SharePlace(const Int8Matrix& matrix, int64_t panel, int64_t share) {
    const int64_t place = (panel * matrix.codes.size(1) + share) * kPanel;
    codes = reinterpret_cast<uint32_t*>(matrix.codes.data_ptr<int32_t>()) + place * kSteps;
    scales = matrix.scales.data_ptr<float>() + place;
    offsets = matrix.offsets.data_ptr<int32_t>() + place;
  }
};

// Its scale, and what values are multiplied by to be codes. The largest of them is found among the bits of
// float32, in whose order infinity and NaN are above all numbers.
struct Rounding {
  float scale, inverse;
};
inline Rounding rounding_by(uint32_t largest) {
  constexpr uint32_t kInfinity = 0x7F800000U;
  constexpr float kLeast = 1e-30F;  // whose reciprocal is a float32
  const auto most = std::bit_cast<float>(largest);
  if (largest >= kInfinity) return {most, 0};
  return most > kLeast ? Rounding{most / kLargest, kLargest / most} : Rounding{0, 0};
}
inline uint32_t magnitude(float value) { return std::bit_cast<uint32_t>(value) & 0x7FFFFFFFU; }
inline int32_t code_of(float value, float inverse) {
  return static_cast<int32_t>(rounded(inverse == 0 ? 0 : value * inverse));
}

// A share of one row, whose codes are 0 beyond `count`.
inline void round_row(const float* values, int64_t count, int8_t* codes, float& scale, int32_t& offset) {
  uint32_t largest = 0;
  for (int64_t k = 0; k < count; ++k) largest = std::max(largest, magnitude(values[k]));
  const Rounding rounding = rounding_by(largest);
  int32_t sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int32_t code = code_of(values[k], rounding.inverse);
    codes[k] = static_cast<int8_t>(code);
    sum += code;
  }
  scale = rounding.scale;
  offset = -kRaised * sum;
}

// `from`: [rows, count], whose rows are `stride` apart.
MCOMPRESS_WIDE void round_rows(const float* from, int64_t stride, int64_t rows, int64_t count,
                               uint32_t* words, float* scales, int32_t* offsets) {
  alignas(64) std::array<int8_t, kPanel * kShare> codes{};
  for (int64_t r = 0; r < kPanel; ++r) {
    const float* values = from + r * stride;
    int8_t* to = codes.data() + r * kShare;
    if (r >= rows) {
      round_row(values, 0, to, scales[r], offsets[r]);
    } else if (count == kShare) {  // a number of steps that the compiler knows
      round_row(values, kShare, to, scales[r], offsets[r]);
    } else {
      round_row(values, count, to, scales[r], offsets[r]);
    }
  }
  for (int64_t step = 0; step < kSteps; ++step) {
    for (int64_t r = 0; r < kPanel; ++r)
      std::memcpy(words + step * kPanel + r, codes.data() + r * kShare + step * kCodes, kCodes);
  }
}

// Lines of whole panels are most, and copied without a call.
inline void copy_line(const float* from, int64_t width, float* to) {
  if (width == kPanel) {
    std::memcpy(to, from, kPanel * sizeof(float));
  } else {
    std::copy_n(from, width, to);
  }
}

// `values`: [kShare, kPanel], of which each column is a share.
MCOMPRESS_WIDE void round_columns(const Tile& values, uint32_t* codes, float* scales, int32_t* offsets) {
  constexpr uint32_t kByte = 0xFFU;
  std::array<uint32_t, kPanel> largest{};
  for (size_t k = 0; k < kShare; ++k) {
    for (size_t r = 0; r < kPanel; ++r) largest[r] = std::max(largest[r], magnitude(values[k * kPanel + r]));
  }
  std::array<float, kPanel> inverse{};
  for (size_t r = 0; r < kPanel; ++r) {
    const Rounding rounding = rounding_by(largest[r]);
    inverse[r] = rounding.inverse;
    scales[r] = rounding.scale;
    offsets[r] = 0;
  }
  for (size_t step = 0; step < kSteps; ++step) {
    uint32_t* words = codes + step * kPanel;
    for (size_t r = 0; r < kPanel; ++r) {
      uint32_t word = 0;
      int32_t sum = 0;
      for (size_t i = 0; i < kCodes; ++i) {
        const int32_t code = code_of(values[(step * kCodes + i) * kPanel + r], inverse[r]);
        word |= (static_cast<uint32_t>(code) & kByte) << 8 * i;
        sum += code;
      }
      words[r] = word;
      offsets[r] -= kRaised * sum;
    }
  }
}

// `from`: [count, rows], whose rows are `stride` apart.
void round_columns(const float* from, int64_t stride, int64_t rows, int64_t count, const SharePlace& to) {
  Tile values;
  if (count < kShare || rows < kPanel) values.fill(0);
  for (int64_t k = 0; k < count; ++k) copy_line(from + k * stride, rows, values.data() + k * kPanel);
  round_columns(values, to.codes, to.scales, to.offsets);
}

// `round` takes values [first, first + count) of rows [row, row + rows).
template <typename Round>
Int8Matrix rounded_matrix(int64_t rows, int64_t depth, const Round& round) {
  const int64_t panels = (rows + kPanel - 1) / kPanel, shares = (depth + kShare - 1) / kShare;
  Int8Matrix matrix = {rows, depth, at::empty({panels, shares, kSteps, kPanel}, at::kInt),
                       at::empty({panels, shares, kPanel}), at::empty({panels, shares, kPanel}, at::kInt)};
  for_each_task(panels, [&](int64_t panel) {
    for (int64_t share = 0; share < shares; ++share) {
      const int64_t row = panel * kPanel, first = share * kShare;
      round(row, std::min(kPanel, rows - row), first, std::min(kShare, depth - first),
            SharePlace(matrix, panel, share));
    }
  });
  return matrix;
}

// left right^T of one panel each.
using AddTile = void (*)(const Int8Matrix& left, int64_t row, const Int8Matrix& right, int64_t column,
                         Tile& tile);

void add_tile_plainly(const Int8Matrix& left, int64_t row, const Int8Matrix& right, int64_t column,
                      Tile& tile) {
  const auto code = [](uint32_t word, int64_t i) { return static_cast<int8_t>(word >> 8 * i); };
  for (int64_t share = 0; share < left.codes.size(1); ++share) {
    const SharePlace a(left, row, share), b(right, column, share);
    for (int64_t r = 0; r < kPanel; ++r) {
      for (int64_t c = 0; c < kPanel; ++c) {
        int32_t sum = 0;
        for (int64_t step = 0; step < kSteps; ++step) {
          const uint32_t x = a.codes[step * kPanel + r], y = b.codes[step * kPanel + c];
          for (int64_t i = 0; i < kCodes; ++i) sum += code(x, i) * code(y, i);
        }
        float& to = tile[static_cast<size_t>(r * kPanel + c)];
        to = std::fma(static_cast<float>(sum) * b.scales[c], a.scales[r], to);
      }
    }
  }
}

#if defined(__x86_64__)

// The instruction multiplies unsigned by signed codes: those of the left side are raised by kRaised, which
// the offsets of the right side make up for. One share of kRows rows, in registers.
constexpr int64_t kRows = 4, kLanes = 16, kWords = kPanel / kLanes;
__attribute__((target("avx512f,avx512vnni"))) void add_rows(const uint32_t* raised, const float* scales,
                                                            const SharePlace& right, float* tile) {
  constexpr __mmask16 kAll = 0xFFFF;  // the plain form makes g++ 12 warn of its own header
  __m512i sums[kRows][kWords];
  for (int64_t c = 0; c < kWords; ++c) {
    const __m512i start = _mm512_loadu_si512(right.offsets + c * kLanes);
    for (int64_t i = 0; i < kRows; ++i) sums[i][c] = start;
  }
#pragma GCC unroll 16  // without which the compiler moves registers about
  for (int64_t step = 0; step < kSteps; ++step) {
    __m512i words[kWords];
    for (int64_t c = 0; c < kWords; ++c)
      words[c] = _mm512_loadu_si512(right.codes + step * kPanel + c * kLanes);
    for (int64_t i = 0; i < kRows; ++i) {
      const __m512i value = _mm512_set1_epi32(static_cast<int>(raised[step * kPanel + i]));
      for (int64_t c = 0; c < kWords; ++c) sums[i][c] = _mm512_dpbusd_epi32(sums[i][c], value, words[c]);
    }
  }
  for (int64_t c = 0; c < kWords; ++c) {
    const __m512 scale = _mm512_loadu_ps(right.scales + c * kLanes);
    for (int64_t i = 0; i < kRows; ++i) {
      float* to = tile + i * kPanel + c * kLanes;
      const __m512 sum = _mm512_mul_ps(_mm512_maskz_cvtepi32_ps(kAll, sums[i][c]), scale);
      _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, _mm512_set1_ps(scales[i]), _mm512_loadu_ps(to)));
    }
  }
}

void add_tile_wide(const Int8Matrix& left, int64_t row, const Int8Matrix& right, int64_t column, Tile& tile) {
  constexpr uint32_t kRaise = 0x80808080U;
  alignas(64) std::array<uint32_t, static_cast<size_t>(kSteps * kPanel)> raised;
  for (int64_t share = 0; share < left.codes.size(1); ++share) {
    const SharePlace a(left, row, share), b(right, column, share);
    for (size_t i = 0; i < raised.size(); ++i) raised[i] = a.codes[i] ^ kRaise;
    for (int64_t r = 0; r < kPanel; r += kRows)
      add_rows(raised.data() + r, a.scales + r, b, tile.data() + r * kPanel);
  }
}

AddTile add_tile() { return multiplies_int8() ? add_tile_wide : add_tile_plainly; }

#else

AddTile add_tile() { return add_tile_plainly; }

#endif

}  // namespace

bool multiplies_int8() {
#if defined(__x86_64__)
  static const bool supported = __builtin_cpu_supports("avx512vnni") != 0;
  return supported;
#else
  return false;
#endif
}

Int8Matrix int8_rows(const at::Tensor& x) {
  const at::Tensor values = x.to(at::kFloat).contiguous();
  const int64_t depth = values.size(1);
  const float* from = values.const_data_ptr<float>();
  return rounded_matrix(values.size(0), depth,
                        [&](int64_t row, int64_t rows, int64_t first, int64_t count, const SharePlace& to) {
                          round_rows(from + row * depth + first, depth, rows, count, to.codes, to.scales,
                                     to.offsets);
                        });
}

Int8Matrix int8_columns(const at::Tensor& x) {
  const at::Tensor values = x.to(at::kFloat).contiguous();
  const int64_t width = values.size(1);
  const float* from = values.const_data_ptr<float>();
  return rounded_matrix(width, values.size(0),
                        [&](int64_t row, int64_t rows, int64_t first, int64_t count, const SharePlace& to) {
                          round_columns(from + first * width + row, width, rows, count, to);
                        });
}

at::Tensor multiply(const Int8Matrix& left, const Int8Matrix& right, const at::Tensor& bias) {
  at::Tensor result = at::empty({left.rows, right.rows});
  const AddTile add = add_tile();
  const at::Tensor start = bias.defined() ? bias.to(at::kFloat).contiguous() : at::Tensor();
  const int64_t columns = right.codes.size(0);
  for_each_task(left.codes.size(0) * columns, [&](int64_t task) {
    const int64_t row = task / columns, column = task % columns,
                  height = std::min(kPanel, left.rows - row * kPanel),
                  width = std::min(kPanel, right.rows - column * kPanel);
    Tile tile;
    tile.fill(0);
    if (start.defined()) {
      for (int64_t r = 0; r < height; ++r)
        std::copy_n(start.const_data_ptr<float>() + column * kPanel, width, tile.data() + r * kPanel);
    }
    add(left, row, right, column, tile);
    float* to = result.data_ptr<float>() + row * kPanel * right.rows + column * kPanel;
    for (int64_t r = 0; r < height; ++r) copy_line(tile.data() + r * kPanel, width, to + r * right.rows);
  });
  return result;
}

void add_square(const Int8Matrix& x, const at::Tensor& sum) {
  const AddTile add = add_tile();
  add_upper_tiles(sum, [&](int64_t row, int64_t column, Tile& tile) { add(x, row, x, column, tile); });
}

}  // namespace mcompress
