#include "mcompress/methods/hessian.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/model/int8_matrix.h"
#include "mcompress/model/upper_tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mcompress {

namespace {

// In float32. Each tile is computed by one thread, whose product has one order of sums.
void add_products(const at::Tensor& x, const at::Tensor& sum) {
  constexpr int64_t kWideTile = 256;
  const int64_t channels = x.size(1);
  const auto tiles = upper_tiles(channels, kWideTile);
  at::parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto range = [&](int64_t tile) {
        return std::pair(tile * kWideTile, std::min((tile + 1) * kWideTile, channels));
      };
      const auto [top, bottom] = range(tiles[static_cast<size_t>(t)].first);
      const auto [left, right] = range(tiles[static_cast<size_t>(t)].second);
      sum.slice(0, top, bottom)
          .slice(1, left, right)
          .add_(x.slice(1, top, bottom).t().matmul(x.slice(1, left, right)));
    }
  });
}

#if defined(__x86_64__)

// Panels of kTile channels, in which the values that a step multiplies lie beside each other: a word a
// channel, a float or two bfloat16 of neighbouring rows. Missing rows and channels are 0.
template <typename Word>
struct Panels {
  int64_t steps;
  std::vector<Word> words;

  Panels(int64_t channels, int64_t count)
      : steps(count), words(static_cast<size_t>((channels + kTile - 1) / kTile * count * kTile)) {}

  Word* at(int64_t panel, int64_t step) { return words.data() + (panel * steps + step) * kTile; }
  const Word* at(int64_t panel) const { return words.data() + panel * steps * kTile; }
};

// Calls `fill` with the width of each panel.
void for_panels(int64_t channels, const std::function<void(int64_t panel, int64_t width)>& fill) {
  at::parallel_for(0, (channels + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) fill(panel, std::min(kTile, channels - panel * kTile));
  });
}

Panels<float> float_panels(const at::Tensor& x) {
  const int64_t rows = x.size(0), channels = x.size(1);
  Panels<float> panels(channels, rows);
  const float* values = x.const_data_ptr<float>();
  for_panels(channels, [&](int64_t panel, int64_t width) {
    for (int64_t row = 0; row < rows; ++row)
      std::copy_n(values + row * channels + panel * kTile, width, panels.at(panel, row));
  });
  return panels;
}

Panels<uint32_t> pair_panels(const at::Tensor& x) {
  const int64_t rows = x.size(0), channels = x.size(1), pairs = (rows + 1) / 2;
  Panels<uint32_t> panels(channels, pairs);
  const auto* values = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
  for_panels(channels, [&](int64_t panel, int64_t width) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const uint16_t* low = values + 2 * pair * channels + panel * kTile;
      const uint16_t* high = low + channels;
      uint32_t* to = panels.at(panel, pair);
      const bool whole = 2 * pair + 1 < rows;
      for (int64_t c = 0; c < width; ++c)
        to[c] = low[c] | (whole ? static_cast<uint32_t>(high[c]) << 16U : 0U);
    }
  });
  return panels;
}

constexpr int64_t kStep = 64,  // whose panels stay in the nearest cache
    kLanes = 16;               // floats a register

// Adds the products of two panels, four rows of the tile at a time in registers.
__attribute__((target("avx512f,avx512bf16"))) void add_tile(const uint32_t* rows, const uint32_t* columns,
                                                            int64_t steps, Tile& tile) {
  for (int64_t first = 0; first < steps; first += kStep) {
    const int64_t last = std::min(first + kStep, steps);
    for (int64_t i = 0; i < kTile; i += 4) {
      __m512 sums[4][4];
      for (int64_t r = 0; r < 4; ++r) {
        for (int64_t c = 0; c < 4; ++c) sums[r][c] = _mm512_loadu_ps(&tile[(i + r) * kTile + c * kLanes]);
      }
      for (int64_t k = first; k < last; ++k) {
        __m512bh right[4];
        for (int64_t c = 0; c < 4; ++c)
          right[c] = (__m512bh)_mm512_loadu_si512(columns + k * kTile + c * kLanes);
        for (int64_t r = 0; r < 4; ++r) {
          const auto left = (__m512bh)_mm512_set1_epi32(static_cast<int>(rows[k * kTile + i + r]));
          for (int64_t c = 0; c < 4; ++c) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], left, right[c]);
        }
      }
      for (int64_t r = 0; r < 4; ++r) {
        for (int64_t c = 0; c < 4; ++c) _mm512_storeu_ps(&tile[(i + r) * kTile + c * kLanes], sums[r][c]);
      }
    }
  }
}

__attribute__((target("avx512f"))) void add_tile(const float* rows, const float* columns, int64_t steps,
                                                 Tile& tile) {
  for (int64_t first = 0; first < steps; first += kStep) {
    const int64_t last = std::min(first + kStep, steps);
    for (int64_t i = 0; i < kTile; i += 4) {
      __m512 sums[4][4];
      for (int64_t r = 0; r < 4; ++r) {
        for (int64_t c = 0; c < 4; ++c) sums[r][c] = _mm512_loadu_ps(&tile[(i + r) * kTile + c * kLanes]);
      }
      for (int64_t k = first; k < last; ++k) {
        __m512 right[4];
        for (int64_t c = 0; c < 4; ++c) right[c] = _mm512_loadu_ps(columns + k * kTile + c * kLanes);
        for (int64_t r = 0; r < 4; ++r) {
          const __m512 left = _mm512_set1_ps(rows[k * kTile + i + r]);
          for (int64_t c = 0; c < 4; ++c) sums[r][c] = _mm512_fmadd_ps(left, right[c], sums[r][c]);
        }
      }
      for (int64_t r = 0; r < 4; ++r) {
        for (int64_t c = 0; c < 4; ++c) _mm512_storeu_ps(&tile[(i + r) * kTile + c * kLanes], sums[r][c]);
      }
    }
  }
}

template <typename Word>
void add_panels(const Panels<Word>& panels, const at::Tensor& sum) {
  add_upper_tiles(sum, [&](int64_t row, int64_t column, Tile& tile) {
    add_tile(panels.at(row), panels.at(column), panels.steps, tile);
  });
}

// False where the processor has not the registers.
bool add_in_registers(const at::Tensor& x, const at::Tensor& sum) {
  static const bool wide = __builtin_cpu_supports("avx512f") != 0;
  if (x.scalar_type() == at::kBFloat16 && multiplies_bfloat16()) {
    add_panels(pair_panels(x), sum);
  } else if (wide) {
    add_panels(float_panels(x.to(at::kFloat)), sum);
  } else {
    return false;
  }
  return true;
}

#else

bool add_in_registers(const at::Tensor&, const at::Tensor&) { return false; }

#endif

}  // namespace

bool multiplies_bfloat16() {
#if defined(__x86_64__)
  static const bool supported = __builtin_cpu_supports("avx512bf16") != 0;
  return supported;
#else
  return false;
#endif
}

HessianSum::HessianSum(int64_t channels, bool int8) : sum_(at::zeros({channels, channels})), int8_(int8) {}

void HessianSum::add(const at::Tensor& inputs) {
  rows_ += inputs.size(0);
  if (int8_) {
    add_square(int8_columns(inputs), sum_);
  } else if (!add_in_registers(inputs.contiguous(), sum_)) {
    add_products(inputs.to(at::kFloat), sum_);
  }
}

at::Tensor HessianSum::mean() const {
  const at::Tensor upper = sum_.triu();
  return (upper + upper.triu(1).t()).div_(static_cast<double>(std::max<int64_t>(1, rows_)));
}

}  // namespace mcompress
