#include "mcompress/methods/gptq.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace {

constexpr int64_t kBlock = 128;  // channels between two updates of all that are left

// The upper triangle U with H^-1 = U^T U, whose row j tells how the channels after j make up for an error of
// j.
struct Factor {
  at::Tensor upper;  // float64
  double damping = 0;
};

// H = R R^T with R upper, which is the Cholesky factor of H turned around; U is its inverse.
Factor factor_of(const at::Tensor& hessian, double damping) {
  constexpr double kSteps = 10, kLeast = 1e-4;
  const double mean = hessian.diagonal().mean().item<double>();
  for (double share = damping; share <= 1; share = std::max(share, kLeast) * kSteps) {
    at::Tensor damped = hessian.clone();
    damped.diagonal().add_(share * mean);
    const auto [lower, failed] = at::linalg_cholesky_ex(damped.flip({0, 1}));
    if (failed.item<int64_t>() != 0) continue;
    const at::Tensor turned = lower.flip({0, 1}).contiguous();
    const at::Tensor upper = at::linalg_solve_triangular(turned, at::eye(turned.size(0), at::kDouble), true);
    if (upper.isfinite().all().item<bool>()) return {upper.contiguous(), share};
  }
  throw bad_data("the Hessian of {} channels has no Cholesky factor, however it is damped", hessian.size(0));
}

double loss_of(const at::Tensor& difference, const at::Tensor& hessian) {
  return (difference.matmul(hessian) * difference).sum().item<double>();
}

// What one channel after another is rounded with: the scales of its group for all rows.
struct ChannelGrid {
  const double *scale, *zero;  // of row 0
  int64_t stride;              // from row to row
};

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
      const double code = std::clamp(std::nearbyint(exact / scale) + zero, 0.0, largest);
      const double error = (exact - scale * (code - zero)) / of_channel[j];
      for (int64_t k = j + 1; k < width; ++k) w[begin + k] -= error * of_channel[k];
      w[begin + j] = code;
      e[j] = error;
    }
  }
}

// Scales and zero points of all groups, float64 [rows, groups]; scales as they are stored, in float32.
struct Scales {
  at::Tensor scale, zero;

  void set(int64_t group, const GroupScale& found) {
    scale.select(1, group).copy_(found.scale.to(at::kFloat));
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
    scales.set(group, group_scale(weight.index_select(1, channels), options.grid,
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
      constexpr int64_t kRows = 64;
      at::parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          const at::Tensor part = weight.slice(0, i * kRows, std::min((i + 1) * kRows, rows));
          const at::Tensor errors = at::empty({part.size(0), end - begin}, at::kDouble);
          round_block(part, errors, upper, grids, largest, i * kRows, begin, end);
          if (end < channels)
            part.slice(1, end).addmm_(errors, upper.slice(0, begin, end).slice(1, end), 1, -1);
        }
      });
      begin = end;
    }
  }
};

void check_inputs(const at::Tensor& weight, const at::Tensor& hessian) {
  if (!weight.isfinite().all().item<bool>()) throw bad_data("the weight has NaN or infinite values");
  if (!hessian.isfinite().all().item<bool>()) throw bad_data("the Hessian has NaN or infinite values");
}

}  // namespace

GptqResult gptq(const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options) {
  check_inputs(weight, hessian);
  const int64_t rows = weight.size(0), channels = weight.size(1);
  const at::Tensor exact = weight.to(at::kDouble), given = hessian.to(at::kDouble);
  const at::Tensor dead = given.diagonal() == 0;
  at::Tensor alive = given.clone();
  alive.diagonal().masked_fill_(dead, 1);
  const at::Tensor order = options.act_order ? alive.diagonal().argsort(true, 0, true) : at::arange(channels);
  const at::Tensor back = order.argsort();
  const Factor factor = factor_of(alive.index_select(0, order).index_select(1, order), options.damping);

  const at::Tensor in_order = groups_in_order(channels, options.grid.group_size);
  const int64_t count = channels == 0 ? 0 : in_order.max().item<int64_t>() + 1;
  Solver solver{options,
                exact.masked_fill(dead, 0).index_select(1, order).contiguous(),
                factor.upper,
                factor.upper.diagonal().square().reciprocal(),
                options.static_groups ? in_order.index_select(0, order).contiguous() : in_order,
                {at::ones({rows, count}, at::kDouble), at::zeros({rows, count}, at::kDouble)}};
  if (options.static_groups) {
    for (int64_t group = 0; group < count; ++group)
      solver.set_scale(group, (solver.groups == group).nonzero().flatten());
  }
  solver.solve();

  GptqResult result;
  result.weight = {solver.weight.index_select(1, back).to(at::kByte), solver.scales.scale.to(at::kFloat),
                   solver.scales.zero.to(at::kByte), solver.groups.index_select(0, back).contiguous()};
  result.damping = factor.damping;
  result.dead_channels = dead.sum().item<int64_t>();
  result.loss = loss_of(dequantize(result.weight).to(at::kDouble) - exact, given);
  GroupGrid plain = options.grid;
  plain.search = false;
  const GroupCodes rounded = round_to_groups(exact, plain);
  result.rounded_loss = loss_of(dequantize(rounded).to(at::kDouble) - exact, given);
  if (result.rounded_loss < result.loss) {
    result.weight = rounded;
    result.loss = result.rounded_loss;
    result.rounded = true;
  }
  return result;
}

}  // namespace mcompress
