#include "mcompress/methods/gptq.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "gptq_descent.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/wide.h"
#include "mcompress/model/pieces.h"
#include "mcompress/model/tasks.h"

namespace mcompress {

namespace {

constexpr int64_t kBlock = 128;  // channels between two updates of all that are left

// The inverse of an upper triangular matrix, in its place, by halves: what is below the diagonal is 0.
void invert_upper(const at::Tensor& matrix) {
  constexpr int64_t kLeast = 64;
  const int64_t count = matrix.size(0), half = (count / 2 + kLeast - 1) / kLeast * kLeast;
  if (count <= 2 * kLeast) {
    matrix.copy_(at::linalg_solve_triangular(matrix, at::eye(count, at::kDouble), true));
    return;
  }
  const at::Tensor first = matrix.slice(0, 0, half).slice(1, 0, half),
                   last = matrix.slice(0, half).slice(1, half),
                   beside = matrix.slice(0, 0, half).slice(1, half);
  invert_upper(first);
  invert_upper(last);
  beside.copy_(first.matmul(beside).matmul(last).neg_());
}

// Sets U and the damping. H = R R^T with R upper, which is the Cholesky factor of H turned around; U is its
// inverse. All in one place, since the matrices of wide layers are large.
void set_upper(double damping, GptqFactor& factor) {
  constexpr double kSteps = 10, kLeast = 1e-4;
  const at::Tensor backwards = factor.order.flip(0);
  const at::Tensor dead = factor.dead.index_select(0, backwards);
  const auto diagonal = factor.hessian.diagonal().masked_fill(factor.dead, 1);
  const double mean = diagonal.mean().item<double>();
  for (double share = damping; share <= 1; share = std::max(share, kLeast) * kSteps) {
    at::Tensor upper = factor.hessian.index({backwards.unsqueeze(1), backwards}).contiguous();
    upper.diagonal().masked_fill_(dead, 1).add_(share * mean);
    // LAPACK has columns beside each other: its upper factor is our lower one, by rows.
    at::Tensor columns = upper.t(), failed = at::zeros({}, at::kInt);
    at::linalg_cholesky_ex_out(columns, failed, columns, true);
    if (failed.item<int64_t>() != 0) continue;
    std::reverse(upper.data_ptr<double>(), upper.data_ptr<double>() + upper.numel());
    invert_upper(upper);
    factor.upper = upper;
    factor.damping = share;
    factor.ridge = share * mean;
    if (factor.upper.isfinite().all().item<bool>()) return;
  }
  throw bad_data("the Hessian of {} channels has no Cholesky factor, however it is damped",
                 factor.hessian.size(0));
}

// What one channel after another is rounded with: the scales of its group for all rows.
struct ChannelGrid {
  const double *scale, *zero;  // of row 0
  int64_t stride;              // from row to row
};

// Takes factor * from[i] from each to[i].
MCOMPRESS_WIDE void subtract(double factor, const double* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] -= factor * from[i];
}

// Rounds channels [begin, end) of some rows of `weight`, float64 [rows, channels], which become the codes,
// and takes their errors from the channels of the block that are left. `errors`: [rows, end - begin].
void round_block(const at::Tensor& weight, const at::Tensor& errors, const at::Tensor& upper,
                 const std::vector<ChannelGrid>& grids, double largest, int64_t first_row, int64_t begin,
                 int64_t end) {
  const int64_t rows = weight.size(0), channels = upper.size(0), width = end - begin;
  const double* u = upper.const_data_ptr<double>();
  for (int64_t row = 0; row < rows; ++row) {
    double* w = weight.data_ptr<double>() + row * weight.stride(0);
    double* e = errors.data_ptr<double>() + row * errors.stride(0);
    for (int64_t j = 0; j < width; ++j) {
      const ChannelGrid& grid = grids[static_cast<size_t>(begin + j)];
      const double scale = grid.scale[(first_row + row) * grid.stride],
                   zero = grid.zero[(first_row + row) * grid.stride];
      const double* of_channel = u + (begin + j) * channels + begin;
      const double exact = w[begin + j];
      const double code = std::clamp(rounded(exact / scale) + zero, 0.0, largest);
      const double error = (exact - scale * (code - zero)) / of_channel[j];
      subtract(error, of_channel + j + 1, width - j - 1, w + begin + j + 1);
      w[begin + j] = code;
      e[j] = error;
    }
  }
}

// Scales and zero points of all groups, float64 [rows, groups].
struct Scales {
  at::Tensor scale, zero;

  void set(int64_t group, const GroupScale& found) {
    scale.select(1, group).copy_(found.scale);
    zero.select(1, group).copy_(found.zero);
  }
};

struct Solver {
  const GptqOptions& options;
  at::Tensor weight;  // float64 [rows, channels] in the order of work; becomes the codes
  at::Tensor upper;
  at::Tensor importance;  // float64 [channels], in the order of work
  at::Tensor groups;      // int64 [channels], in the order of work
  Scales scales;

  int64_t group_size() const {
    return options.grid.group_size < 0 ? weight.size(1) : options.grid.group_size;
  }

  void set_scale(int64_t group, const at::Tensor& channels) {
    scales.set(group, group_scale(take_columns(weight, channels), options.grid,
                                  importance.index_select(0, channels)));
  }

  void solve() {
    const int64_t channels = weight.size(1), rows = weight.size(0);
    const auto largest = static_cast<double>((1 << options.grid.bits) - 1);
    std::vector<ChannelGrid> grids;
    const int64_t* group = groups.const_data_ptr<int64_t>();
    for (int64_t j = 0; j < channels; ++j)
      grids.push_back({scales.scale.const_data_ptr<double>() + group[j],
                       scales.zero.const_data_ptr<double>() + group[j], scales.scale.stride(0)});
    for (int64_t begin = 0; begin < channels;) {
      check_interrupt();
      int64_t end = std::min(begin + kBlock, channels);
      if (!options.static_groups) {
        // The scale of a group is that of its weights when its turn comes, with all errors so far made up
        // for.
        const int64_t next = begin - begin % group_size() + group_size();
        if (begin % group_size() == 0) set_scale(group[begin], at::arange(begin, std::min(next, channels)));
        end = std::min(end, next);
      }
      // Fixed numbers of rows, so that sums are made in the same order whatever runs them.
      constexpr int64_t kRows = 32;
      for_each_task((rows + kRows - 1) / kRows, [&](int64_t i) {
        const at::Tensor part = weight.slice(0, i * kRows, std::min((i + 1) * kRows, rows));
        const at::Tensor errors = at::empty({part.size(0), end - begin}, at::kDouble);
        round_block(part, errors, upper, grids, largest, i * kRows, begin, end);
        if (end < channels)
          part.slice(1, end).addmm_(errors, upper.slice(0, begin, end).slice(1, end), 1, -1);
      });
      begin = end;
    }
  }
};

}  // namespace

GptqFactor factor_hessian(at::Tensor hessian, const GptqOptions& options) {
  if (!hessian.isfinite().all().item<bool>()) throw bad_data("the Hessian has NaN or infinite values");
  GptqFactor factor;
  factor.hessian = hessian.to(at::kDouble, false, true);
  hessian = at::Tensor();
  factor.dead = factor.hessian.diagonal() == 0;
  const at::Tensor weight = factor.hessian.diagonal().masked_fill(factor.dead, 1);
  factor.order = options.act_order ? weight.argsort(true, 0, true) : at::arange(weight.size(0));
  set_upper(options.damping, factor);
  factor.hessian.diagonal().add_(factor.ridge);
  return factor;
}

GptqResult gptq(const at::Tensor& weight, const GptqFactor& factor, const GptqOptions& options) {
  if (!weight.isfinite().all().item<bool>()) throw bad_data("the weight has NaN or infinite values");
  const int64_t rows = weight.size(0), channels = weight.size(1);
  const at::Tensor alive = weight.to(at::kDouble).masked_fill(factor.dead, 0),
                   in_order = groups_in_order(channels, options.grid.group_size);
  const int64_t count = channels == 0 ? 0 : in_order.max().item<int64_t>() + 1;
  Solver solver{options,
                take_columns(alive, factor.order),
                factor.upper,
                factor.upper.diagonal().square().reciprocal(),
                options.static_groups ? in_order.index_select(0, factor.order).contiguous() : in_order,
                {at::ones({rows, count}, at::kDouble), at::zeros({rows, count}, at::kDouble)}};
  if (options.static_groups) {
    for (int64_t group = 0; group < count; ++group)
      solver.set_scale(group, (solver.groups == group).nonzero().flatten());
  }
  solver.solve();

  const at::Tensor back = factor.order.argsort();
  GptqResult result;
  result.weight = {options.grid.bits, take_columns(solver.weight.to(at::kByte), back),
                   solver.scales.scale.to(at::kHalf), solver.scales.zero.to(at::kByte),
                   solver.groups.index_select(0, back).contiguous()};
  solver.weight = at::Tensor();
  // Loss is told without the damping, which is a means to lose less on other inputs.
  const auto without_ridge = [&](double damped, const at::Tensor& lost) {
    return damped - factor.ridge * lost.square().sum(at::kDouble).item<double>();
  };
  const double damped = descend(result.weight, alive, factor.hessian, options.sweeps);
  result.loss = without_ridge(damped, dequantize_rows(result.weight, 0, rows).to(at::kDouble).sub_(alive));
  GroupGrid plain = options.grid;
  plain.search = false;
  const IntGroup rounded = round_to_groups(alive, plain);
  const at::Tensor lost = dequantize_rows(rounded, 0, rows).sub_(alive);
  result.rounded_loss = without_ridge(
      (lost.matmul(factor.hessian.to(at::kFloat)) * lost).sum(at::kDouble).item<double>(), lost);
  if (result.rounded_loss < result.loss) {
    result.weight = rounded;
    result.loss = result.rounded_loss;
    result.rounded = true;
  }
  return result;
}

GptqResult gptq(const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options) {
  return gptq(weight, factor_hessian(hessian, options), options);
}

}  // namespace mcompress
