#include <algorithm>
#include <atomic>
#include <numeric>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "scores.h"

namespace mcompress {

namespace {

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

}  // namespace

RowMask lowest_in_runs(const PrunableWeight& weight, const Amount& amount, const PruneOptions& options) {
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
RowMask lowest_channels(const PrunableWeight& weight, const Amount& amount, const PruneOptions& options) {
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

}  // namespace mcompress
