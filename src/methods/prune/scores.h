#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/prune.h"

namespace mcompress {

using Weights = std::vector<PrunableWeight>;

// Scores of rows [begin, end): float32 [end - begin, columns], contiguous, never negative.
at::Tensor scores_of(const PrunableWeight& weight, const PruneOptions& options, int64_t begin, int64_t end);

// Runs `task` on ranges of rows that are worth a histogram each, on several threads.
void for_ranges(const PrunableWeight& weight, const std::function<void(int64_t first, int64_t last)>& task);

// Calls `use` with the scores of all rows, a piece at a time, on several threads.
void for_scores(const PrunableWeight& weight, const PruneOptions& options,
                const std::function<void(int64_t begin, const at::Tensor& scores)>& use);

// Throws Error(65) where `nan` scores of the weight are NaN.
void check_no_nan(int64_t nan, const PrunableWeight& weight);

// The ways to choose, for choose_zeros(): by one cut through all scores, inside runs of neighbours, whole
// rows.
std::vector<RowMask> cut_scores(const Weights& weights, const Amount& amount, const PruneOptions& options);
RowMask lowest_in_runs(const PrunableWeight& weight, const Amount& amount, const PruneOptions& options);
RowMask lowest_channels(const PrunableWeight& weight, const Amount& amount, const PruneOptions& options);

}  // namespace mcompress
