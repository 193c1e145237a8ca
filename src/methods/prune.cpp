#include "mcompress/methods/prune.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <charconv>
#include <cmath>
#include <mutex>
#include <numeric>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/model/pieces.h"

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

using Weights = std::vector<PrunableWeight>;

int64_t count_elements(const Weights& weights) {
  return std::accumulate(
      weights.begin(), weights.end(), int64_t{0},
      [](int64_t sum, const PrunableWeight& weight) { return sum + weight.rows * weight.columns; });
}

// Scores of rows [begin, end): float32 [end - begin, columns], contiguous, never negative.
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

// Runs `task` on ranges of rows that are worth a histogram each, on several threads.
void for_ranges(const PrunableWeight& weight, const std::function<void(int64_t first, int64_t last)>& task) {
  constexpr int64_t kMinElements = int64_t{1} << 18;
  const int64_t grain = std::max<int64_t>(1, kMinElements / std::max<int64_t>(1, weight.columns));
  at::parallel_for(0, weight.rows, grain, task);
  if (weight.release) weight.release();
}

// Calls `use` with the scores of all rows, a piece at a time, on several threads.
void for_scores(const PrunableWeight& weight, const PruneOptions& options,
                const std::function<void(int64_t begin, const at::Tensor& scores)>& use) {
  for_ranges(weight, [&](int64_t first, int64_t last) {
    for_row_pieces(first, last, weight.columns,
                   [&](int64_t begin, int64_t end) { use(begin, scores_of(weight, options, begin, end)); });
  });
}

void check_no_nan(int64_t nan, const PrunableWeight& weight) {
  if (nan == 0) return;
  throw bad_data(
      "weight of layer '{}' holds {} values that are NaN; repair the model or pass --ignore '^{}$'",
      weight.name, nan, weight.name);
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

std::vector<RowMask> unstructured(const Weights& weights, const Amount& amount, const PruneOptions& options) {
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

// True for the `zeros` lowest of `count` scores, the first of equal ones.
void mark_lowest(const float* scores, int64_t count, int64_t zeros, bool* mask, std::vector<int64_t>& order) {
  order.resize(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::nth_element(order.begin(), order.begin() + zeros, order.end(), [scores](int64_t a, int64_t b) {
    return scores[a] < scores[b] || (scores[a] == scores[b] && a < b);
  });
  std::fill_n(mask, count, false);
  for (int64_t i = 0; i < zeros; ++i) mask[order[static_cast<size_t>(i)]] = true;
}

// Compares only inside runs of `run` neighbours of a row.
RowMask mask_in_runs(const PrunableWeight& weight, const PruneOptions& options, int64_t run, int64_t zeros) {
  return [weight, options, run, zeros](int64_t begin, int64_t end) {
    const at::Tensor scores = scores_of(weight, options, begin, end);
    at::Tensor mask = at::empty(scores.sizes(), at::kBool);
    std::vector<int64_t> order;
    for (int64_t i = 0; i < scores.numel(); i += run)
      mark_lowest(scores.const_data_ptr<float>() + i, run, zeros, mask.data_ptr<bool>() + i, order);
    return mask;
  };
}

RowMask in_runs(const PrunableWeight& weight, const Amount& amount, const PruneOptions& options) {
  int64_t run = weight.columns, zeros = 0;
  if (options.pattern.kind == SparsityPattern::Kind::kGroups) {
    run = options.pattern.group;
    zeros = run - options.pattern.kept;
    if (weight.columns % run != 0) {
      throw error(Exit::kUsage,
                  "layer '{}' has {} weights an output, which --pattern {}:{} does not divide; use "
                  "--ignore '^{}$' or another pattern",
                  weight.name, weight.columns, options.pattern.kept, run, weight.name);
    }
  } else {
    zeros = resolve_amount(amount, run, fmt::format("a row of layer '{}'", weight.name));
  }
  std::atomic<int64_t> nan = 0;
  for_scores(weight, options, [&](int64_t /*begin*/, const at::Tensor& scores) {
    nan += scores.isnan().sum().item<int64_t>();
  });
  check_no_nan(nan, weight);
  return mask_in_runs(weight, options, run, zeros);
}

// As torch.nn.utils.prune.ln_structured with dim=0: the channels of the greatest norms stay.
RowMask of_channels(const PrunableWeight& weight, const Amount& amount, const PruneOptions& options) {
  const int64_t zeros =
      resolve_amount(amount, weight.rows, fmt::format("the channels of layer '{}'", weight.name));
  const at::Tensor norms = at::zeros({weight.rows}, at::kFloat);
  for_scores(weight, options, [&](int64_t begin, const at::Tensor& scores) {
    const double order = options.criterion == Criterion::kL2 ? 2 : 1;
    norms.slice(0, begin, begin + scores.size(0)).copy_(at::norm(scores, order, 1));
  });
  check_no_nan(norms.isnan().sum().item<int64_t>(), weight);
  const at::Tensor zero = at::ones({weight.rows, 1}, at::kBool);
  zero.index_fill_(0, std::get<1>(at::topk(norms, weight.rows - zeros, -1, /*largest=*/true)), false);
  return [zero, columns = weight.columns](int64_t begin, int64_t end) {
    return zero.slice(0, begin, end).expand({end - begin, columns});
  };
}

}  // namespace

SparsityPattern parse_pattern(const std::string& text) {
  using Kind = SparsityPattern::Kind;
  if (text == "unstructured") return {};
  if (text == "channels-zero") return {Kind::kChannels, 0, 0};
  SparsityPattern pattern{Kind::kGroups, 0, 0};
  const char* end = text.data() + text.size();
  const auto kept = std::from_chars(text.data(), end, pattern.kept);
  const bool colon = kept.ec == std::errc() && kept.ptr != end && *kept.ptr == ':';
  const auto group = colon ? std::from_chars(kept.ptr + 1, end, pattern.group) : kept;
  if (!colon || group.ec != std::errc() || group.ptr != end || pattern.kept < 1 ||
      pattern.kept >= pattern.group) {
    throw error(Exit::kUsage,
                "--pattern '{}' is none of unstructured, channels-zero, and N:M with 0 < N < M, such as 2:4",
                text);
  }
  return pattern;
}

int64_t resolve_amount(const Amount& amount, int64_t size, const std::string& what) {
  if (!amount.count) return static_cast<int64_t>(std::nearbyint(amount.share * static_cast<double>(size)));
  if (*amount.count <= size) return *amount.count;
  throw error(Exit::kUsage, "--count {} is more than the {} of {}", *amount.count, size, what);
}

std::vector<RowMask> choose_zeros(const std::vector<PrunableWeight>& weights, const Amount& amount,
                                  const PruneOptions& options) {
  const bool groups = options.pattern.kind == SparsityPattern::Kind::kGroups;
  const bool by_channel = options.pattern.kind == SparsityPattern::Kind::kChannels;
  if (!groups && !by_channel && options.criterion != Criterion::kWanda)
    return unstructured(weights, amount, options);
  std::vector<RowMask> masks;
  for (const PrunableWeight& weight : weights)
    masks.push_back(by_channel ? of_channels(weight, amount, options) : in_runs(weight, amount, options));
  return masks;
}

}  // namespace mcompress
