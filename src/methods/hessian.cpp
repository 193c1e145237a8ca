#include "mcompress/methods/hessian.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mcompress {

namespace {

constexpr int64_t kTile = 64;  // channels

// The tiles [row, column] on and above the diagonal.
std::vector<std::pair<int64_t, int64_t>> upper_tiles(int64_t channels, int64_t tile) {
  std::vector<std::pair<int64_t, int64_t>> tiles;
  const int64_t count = (channels + tile - 1) / tile;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = i; j < count; ++j) tiles.emplace_back(i, j);
  }
  return tiles;
}

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

// Panels of kTile channels: for each pair of rows one word a channel, with its two bfloat16 values. Missing
// rows and channels are 0.
using Pairs = std::vector<uint32_t>;
Pairs make_panels(const at::Tensor& x) {
  const int64_t rows = x.size(0), channels = x.size(1), pairs = (rows + 1) / 2,
                panels = (channels + kTile - 1) / kTile;
  Pairs result(static_cast<size_t>(panels * pairs * kTile));
  const auto* values = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t width = std::min(kTile, channels - panel * kTile);
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const uint16_t* low = values + 2 * pair * channels + panel * kTile;
        const uint16_t* high = low + channels;
        uint32_t* to = result.data() + (panel * pairs + pair) * kTile;
        const bool whole = 2 * pair + 1 < rows;
        for (int64_t c = 0; c < width; ++c)
          to[c] = low[c] | (whole ? static_cast<uint32_t>(high[c]) << 16U : 0U);
      }
    }
  });
  return result;
}

using Tile = std::array<float, static_cast<size_t>(kTile* kTile)>;

// Adds the products of two panels over `pairs` pairs of rows.
__attribute__((target("avx512f,avx512bf16"))) void add_tile(const uint32_t* rows, const uint32_t* columns,
                                                            int64_t pairs, Tile& tile) {
  constexpr int64_t kStep = 64,
                    kLanes = 16;  // pairs whose panel stays in the nearest cache; floats a register
  for (int64_t first = 0; first < pairs; first += kStep) {
    const int64_t last = std::min(first + kStep, pairs);
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

void add_narrow_products(const at::Tensor& x, const at::Tensor& sum) {
  const int64_t channels = x.size(1), pairs = (x.size(0) + 1) / 2;
  const Pairs panels = make_panels(x);
  const auto tiles = upper_tiles(channels, kTile);
  float* to = sum.data_ptr<float>();
  at::parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto [row, column] = tiles[static_cast<size_t>(t)];
      Tile tile{};
      add_tile(panels.data() + row * pairs * kTile, panels.data() + column * pairs * kTile, pairs, tile);
      const int64_t height = std::min(kTile, channels - row * kTile),
                    width = std::min(kTile, channels - column * kTile);
      for (int64_t i = 0; i < height; ++i) {
        float* line = to + (row * kTile + i) * channels + column * kTile;
        for (int64_t j = 0; j < width; ++j) line[j] += tile[static_cast<size_t>(i * kTile + j)];
      }
    }
  });
}

#else

void add_narrow_products(const at::Tensor&, const at::Tensor&) {}

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

HessianSum::HessianSum(int64_t channels) : sum_(at::zeros({channels, channels})) {}

void HessianSum::add(const at::Tensor& inputs) {
  rows_ += inputs.size(0);
  if (inputs.scalar_type() == at::kBFloat16 && multiplies_bfloat16()) {
    add_narrow_products(inputs.contiguous(), sum_);
  } else {
    add_products(inputs.to(at::kFloat), sum_);
  }
}

at::Tensor HessianSum::mean() const {
  const at::Tensor upper = sum_.triu();
  return (upper + upper.triu(1).t()).div_(static_cast<double>(std::max<int64_t>(1, rows_)));
}

}  // namespace mcompress
