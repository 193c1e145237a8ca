#include "mcompress/model/upper_tiles.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "mcompress/model/tasks.h"

namespace mcompress {

std::vector<std::pair<int64_t, int64_t>> upper_tiles(int64_t channels, int64_t tile) {
  std::vector<std::pair<int64_t, int64_t>> tiles;
  const int64_t count = (channels + tile - 1) / tile;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = i; j < count; ++j) tiles.emplace_back(i, j);
  }
  return tiles;
}

void add_upper_tiles(const at::Tensor& sum,
                     const std::function<void(int64_t row, int64_t column, Tile& tile)>& add) {
  const int64_t channels = sum.size(0);
  const auto tiles = upper_tiles(channels, kTile);
  float* to = sum.data_ptr<float>();
  for_each_task(static_cast<int64_t>(tiles.size()), [&](int64_t task) {
    const auto [row, column] = tiles[static_cast<size_t>(task)];
    Tile tile;
    tile.fill(0);
    add(row, column, tile);
    const int64_t height = std::min(kTile, channels - row * kTile),
                  width = std::min(kTile, channels - column * kTile);
    for (int64_t i = 0; i < height; ++i) {
      float* line = to + (row * kTile + i) * channels + column * kTile;
      for (int64_t j = 0; j < width; ++j) line[j] += tile[static_cast<size_t>(i * kTile + j)];
    }
  });
}

}  // namespace mcompress
