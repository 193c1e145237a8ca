#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace mcompress {

// Products of a matrix with its transpose, [channels, channels], of which the half is enough.

constexpr int64_t kTile = 64;  // channels
struct alignas(64) Tile : std::array<float, static_cast<size_t>(kTile* kTile)> {};

// The tiles [row, column] of so many channels each on and above the diagonal.
std::vector<std::pair<int64_t, int64_t>> upper_tiles(int64_t channels, int64_t tile);

// Adds to `sum`, float32 [channels, channels], what `add` puts into each of these tiles, which begins with
// zeros. Each is one thread's, so that the sums are the same for any number of them.
void add_upper_tiles(const at::Tensor& sum,
                     const std::function<void(int64_t row, int64_t column, Tile& tile)>& add);

}  // namespace mcompress
