#include "scores.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

// splitmix64 (Steele, Lea, Flood 2014): a number for each place, whatever the order of the places.
uint64_t mix(uint64_t state) {
  state += 0x9e3779b97f4a7c15;
  state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9;
  state = (state ^ (state >> 27)) * 0x94d049bb133111eb;
  return state ^ (state >> 31);
}

at::Tensor random_scores(uint64_t seed, int64_t first, int64_t count) {
  constexpr int kShift = 40;  // 24 bits are left, which float32 holds
  at::Tensor scores = at::empty({count}, at::kFloat);
  float* values = scores.data_ptr<float>();
  for (int64_t i = 0; i < count; ++i)
    values[i] = static_cast<float>(mix(seed + static_cast<uint64_t>(first + i)) >> kShift);
  return scores;
}

}  // namespace

at::Tensor scores_of(const PrunableWeight& weight, const PruneOptions& options, int64_t begin, int64_t end) {
  if (options.criterion == Criterion::kRandom) {
    uint64_t stream = mix(options.seed);
    for (const char letter : weight.name) stream = mix(stream ^ static_cast<unsigned char>(letter));
    return random_scores(stream, begin * weight.columns, (end - begin) * weight.columns)
        .view({end - begin, weight.columns});
  }
  at::Tensor scores = weight.read(begin, end).to(at::kFloat).abs().contiguous();
  if (!weight.input_norm.defined()) return scores;
  const int64_t groups = weight.input_norm.size(0);
  if (groups == 1) return scores.mul_(weight.input_norm);
  if (weight.rows % groups != 0)
    throw bad_data("layer '{}' has {} outputs, which its {} groups do not divide", weight.name, weight.rows,
                   groups);
  const at::Tensor group = at::arange(begin, end).div(weight.rows / groups, "floor");
  return scores.mul_(weight.input_norm.index_select(0, group));
}

void for_ranges(const PrunableWeight& weight, const std::function<void(int64_t first, int64_t last)>& task) {
  constexpr int64_t kMinElements = int64_t{1} << 18;
  const int64_t grain = std::max<int64_t>(1, kMinElements / std::max<int64_t>(1, weight.columns));
  at::parallel_for(0, weight.rows, grain, task);
  if (weight.release) weight.release();
}

void for_scores(const PrunableWeight& weight, const PruneOptions& options,
                const std::function<void(int64_t begin, const at::Tensor& scores)>& use) {
  for_ranges(weight, [&](int64_t first, int64_t last) {
    for_row_pieces(first, last, weight.columns, [&](int64_t begin, int64_t end) {
      check_interrupt();
      use(begin, scores_of(weight, options, begin, end));
    });
  });
}

void check_no_nan(int64_t nan, const PrunableWeight& weight) {
  if (nan == 0) return;
  throw bad_data(
      "weight of layer '{}' holds {} values that are NaN; repair the model or pass --ignore '^{}$'",
      weight.name, nan, weight.name);
}

}  // namespace mcompress
