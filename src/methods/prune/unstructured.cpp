#include <algorithm>
#include <atomic>
#include <bit>
#include <mutex>
#include <numeric>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/model/pieces.h"
#include "scores.h"

namespace mcompress {

namespace {

// The order of non-negative floats is that of their bits, read in two digits.
constexpr int kLowBits = 15;
constexpr size_t kDigits = size_t{1} << 16;
constexpr uint32_t kLowMask = (uint32_t{1} << kLowBits) - 1;
constexpr uint32_t kInfinity = 0x7f800000;  // greater keys are NaN
constexpr int64_t kMaxTorchTies = int64_t{1} << 24;

// Without the sign, which only a NaN can have here.
uint32_t key_of(float score) { return std::bit_cast<uint32_t>(score) & INT32_MAX; }

int64_t count_elements(const Weights& weights) {
  return std::accumulate(
      weights.begin(), weights.end(), int64_t{0},
      [](int64_t sum, const PrunableWeight& weight) { return sum + weight.rows * weight.columns; });
}

using Histogram = std::vector<int64_t>;

// Counts one digit of the keys of all scores: the high one, or the low one of keys whose high digit is
// `high`.
Histogram count_digits(const Weights& weights, const PruneOptions& options, std::optional<uint32_t> high) {
  Histogram total(kDigits, 0);
  std::mutex mutex;
  for (const PrunableWeight& weight : weights) {
    int64_t all_nan = 0;
    for_ranges(weight, [&](int64_t first, int64_t last) {
      Histogram counts(kDigits, 0);
      int64_t nan = 0;
      for_row_pieces(first, last, weight.columns, [&](int64_t begin, int64_t end) {
        check_interrupt();
        const at::Tensor scores = scores_of(weight, options, begin, end);
        const float* values = scores.const_data_ptr<float>();
        for (int64_t i = 0; i < scores.numel(); ++i) {
          const uint32_t key = key_of(values[i]);
          nan += key > kInfinity ? 1 : 0;
          if (!high) {
            ++counts[key >> kLowBits];
          } else if (key >> kLowBits == *high) {
            ++counts[key & kLowMask];
          }
        }
      });
      const std::lock_guard lock(mutex);
      all_nan += nan;
      std::transform(total.begin(), total.end(), counts.begin(), total.begin(), std::plus<>());
    });
    check_no_nan(all_nan, weight);
  }
  return total;
}

// Keys below `key` become zero, and `zeroed` of the `equal` ones that have it.
struct Cut {
  uint32_t key = 0;
  int64_t zeroed = 0, equal = 0;
};

// The digit in which the `rank`-th smallest key lies, counted from 1; `rank` becomes that inside the digit.
uint32_t find_digit(const Histogram& histogram, int64_t& rank) {
  for (size_t digit = 0; digit < histogram.size(); ++digit) {
    if (rank <= histogram[digit]) return static_cast<uint32_t>(digit);
    rank -= histogram[digit];
  }
  throw error(Exit::kInternal, "internal error: a rank beyond the histogram");
}

Cut find_cut(const Weights& weights, const PruneOptions& options, int64_t zeros) {
  const Histogram highs = count_digits(weights, options, {});  // also where nothing is zeroed: NaN is refused
  if (zeros == 0) return {};
  const uint32_t high = find_digit(highs, zeros);
  const Histogram lows = count_digits(weights, options, high);
  const uint32_t low = find_digit(lows, zeros);
  return {(high << kLowBits) | low, zeros, lows[low]};
}

// True for the weights that torch.topk names the lowest. PyTorch's choice among equal scores depends on how
// its topk sorts, so topk is asked.
at::Tensor lowest_by_topk(const Weights& weights, const PruneOptions& options, int64_t zeros) {
  std::vector<at::Tensor> scores;
  for (const PrunableWeight& weight : weights)
    scores.push_back(scores_of(weight, options, 0, weight.rows).view({-1}));
  const at::Tensor all = at::cat(scores);
  at::Tensor zero = at::zeros({all.numel()}, at::kBool);
  return zero.index_fill_(0, std::get<1>(at::topk(all, zeros, -1, /*largest=*/false)), true);
}

// Made when it is asked for, so that the masks of many layers never lie in memory together.
RowMask mask_of_topk(const PrunableWeight& weight, const PruneOptions& options, int64_t zeros) {
  return [weight, options, zeros, whole = at::Tensor()](int64_t begin, int64_t end) mutable {
    if (begin == 0) whole = lowest_by_topk({weight}, options, zeros).view({weight.rows, weight.columns});
    at::Tensor mask = whole.slice(0, begin, end);
    if (end == weight.rows) whole.reset();
    return mask;
  };
}

std::vector<RowMask> masks_of_topk(const Weights& weights, const PruneOptions& options, int64_t zeros) {
  if (weights.size() == 1) return {mask_of_topk(weights.front(), options, zeros)};
  const at::Tensor zero = lowest_by_topk(weights, options, zeros);
  std::vector<RowMask> masks;
  int64_t at = 0;
  for (const PrunableWeight& weight : weights) {
    const int64_t size = weight.rows * weight.columns;
    const at::Tensor own = zero.slice(0, at, at + size).view({weight.rows, weight.columns});
    masks.emplace_back([own](int64_t begin, int64_t end) { return own.slice(0, begin, end); });
    at += size;
  }
  return masks;
}

// How many scores of a weight equal `score`.
int64_t count_equal(const PrunableWeight& weight, const PruneOptions& options, float score) {
  std::atomic<int64_t> count = 0;
  for_scores(weight, options, [&](int64_t /*begin*/, const at::Tensor& scores) {
    const float* values = scores.const_data_ptr<float>();
    count += std::count(values, values + scores.numel(), score);
  });
  return count;
}

// Scores below the cut, and the first `quota` of those equal to it.
RowMask mask_of_cut(const PrunableWeight& weight, const PruneOptions& options, uint32_t cut, int64_t quota) {
  return [weight, options, cut, quota, used = int64_t{0}](int64_t begin, int64_t end) mutable {
    if (begin == 0) used = 0;
    const at::Tensor scores = scores_of(weight, options, begin, end);
    at::Tensor mask = at::empty(scores.sizes(), at::kBool);
    const float* values = scores.const_data_ptr<float>();
    bool* zero = mask.data_ptr<bool>();
    for (int64_t i = 0; i < scores.numel(); ++i) zero[i] = key_of(values[i]) < cut;
    for (int64_t i = 0; i < scores.numel() && used < quota; ++i) {
      if (key_of(values[i]) != cut) continue;
      zero[i] = true;
      ++used;
    }
    return mask;
  };
}

}  // namespace

std::vector<RowMask> cut_scores(const Weights& weights, const Amount& amount, const PruneOptions& options) {
  const int64_t elements = count_elements(weights);
  const std::string what =
      weights.size() == 1 ? fmt::format("layer '{}'", weights.front().name) : "all chosen layers";
  const int64_t zeros = resolve_amount(amount, elements, what);
  const Cut cut = find_cut(weights, options, zeros);
  const bool divided = cut.zeroed > 0 && cut.zeroed < cut.equal;
  if (divided && elements <= kMaxTorchTies) return masks_of_topk(weights, options, zeros);
  std::vector<RowMask> masks;
  int64_t left = cut.zeroed;
  for (const PrunableWeight& weight : weights) {
    int64_t quota = left;
    if (divided && weights.size() > 1) {
      quota = std::min(left, count_equal(weight, options, std::bit_cast<float>(cut.key)));
      left -= quota;
    }
    masks.push_back(mask_of_cut(weight, options, cut.key, quota));
  }
  return masks;
}

}  // namespace mcompress
