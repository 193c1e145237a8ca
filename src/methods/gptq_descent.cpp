#include "gptq_descent.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include "mcompress/base/interrupt.h"
#include "wide.h"

namespace mcompress {

namespace {

// to[i] += factor * from[i]
MCOMPRESS_WIDE void add(double factor, const double* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

double dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// One group of one row.
struct GroupOfRow {
  int64_t count;
  const double* hessian;  // [count, count], of its channels
  double* level;          // codes less the zero point
  double* gradient;       // (W - Q) H
  double* step;           // what Q has gained, which is added to
  double scale;
  double lowest, highest;  // level
};

// The least of loss over the scale lies at scale + level . gradient / level H level.
void step_scale(GroupOfRow& group, std::vector<double>& product) {
  std::fill(product.begin(), product.begin() + group.count, 0.0);
  for (int64_t j = 0; j < group.count; ++j) {
    if (group.level[j] != 0)
      add(group.level[j], group.hessian + j * group.count, group.count, product.data());
  }
  const double slope = dot(group.level, group.gradient, group.count),
               curvature = dot(group.level, product.data(), group.count);
  if (!(curvature > 0)) return;
  const double wanted = group.scale + slope / curvature;
  const double scale = static_cast<c10::Half>(static_cast<float>(wanted));
  const double change = scale - group.scale;
  if (scale == 0 || !std::isfinite(scale) || change * (change * curvature - 2 * slope) >= 0) return;
  group.scale = scale;
  add(-change, product.data(), group.count, group.gradient);
  add(change, group.level, group.count, group.step);
}

void step_codes(GroupOfRow& group) {
  for (int64_t j = 0; j < group.count; ++j) {
    const double* row = group.hessian + j * group.count;
    if (!(row[j] > 0)) continue;
    const double level = std::clamp(rounded(group.level[j] + group.gradient[j] / row[j] / group.scale),
                                    group.lowest, group.highest);
    const double change = group.scale * (level - group.level[j]);
    if (change == 0) continue;
    group.level[j] = level;
    group.step[j] += change;
    add(-change, row, group.count, group.gradient);
  }
}

}  // namespace

double descend(IntGroup& weight, const at::Tensor& exact, const at::Tensor& hessian, int sweeps) {
  const int64_t rows = exact.size(0), channels = exact.size(1);
  // Channels of a group beside each other.
  const at::Tensor order = weight.groups.argsort(true, 0, false);
  const at::Tensor groups = weight.groups.index_select(0, order);
  const bool in_order = order.equal(at::arange(channels));
  const at::Tensor curvature = in_order ? hessian : hessian.index_select(0, order).index_select(1, order);
  at::Tensor scale = weight.scale.to(at::kDouble);
  const at::Tensor zero = weight.zero.to(at::kDouble);
  at::Tensor level = weight.codes.to(at::kDouble).index_select(1, order) - zero.index_select(1, groups);
  at::Tensor error = exact.index_select(1, order) - level * scale.index_select(1, groups);
  at::Tensor gradient = error.matmul(curvature);
  const double largest = (1 << weight.bits) - 1;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int64_t begin = 0; begin < channels;) {
      check_interrupt();
      const auto group = groups[begin].item<int64_t>();
      const int64_t count = (groups == group).sum().item<int64_t>(), end = begin + count;
      const at::Tensor inside = curvature.slice(0, begin, end).slice(1, begin, end).contiguous();
      const at::Tensor across = curvature.slice(0, begin, end);
      constexpr int64_t kRows = 64;  // fixed, so that sums are made in the same order whatever runs them
      at::parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t first, int64_t last) {
        std::vector<double> product(static_cast<size_t>(count)), near(static_cast<size_t>(count));
        for (int64_t chunk = first; chunk < last; ++chunk) {
          const int64_t top = chunk * kRows, bottom = std::min(top + kRows, rows);
          at::Tensor steps = at::zeros({bottom - top, count}, at::kDouble);
          for (int64_t row = top; row < bottom; ++row) {
            const double* from = gradient.const_data_ptr<double>() + row * channels + begin;
            std::copy_n(from, count, near.data());
            double& of_row = scale.data_ptr<double>()[row * scale.size(1) + group];
            const double middle = zero.const_data_ptr<double>()[row * zero.size(1) + group];
            GroupOfRow at_hand{count,
                               inside.const_data_ptr<double>(),
                               level.data_ptr<double>() + row * channels + begin,
                               near.data(),
                               steps.data_ptr<double>() + (row - top) * count,
                               of_row,
                               -middle,
                               largest - middle};
            step_scale(at_hand, product);
            step_codes(at_hand);
            of_row = at_hand.scale;
          }
          gradient.slice(0, top, bottom).addmm_(steps, across, 1, -1);
          error.slice(0, top, bottom).slice(1, begin, end).sub_(steps);
        }
      });
      begin = end;
    }
  }
  weight.scale = scale.to(at::kHalf);
  weight.codes = (level + zero.index_select(1, groups)).index_select(1, order.argsort()).to(at::kByte);
  return (error * gradient).sum().item<double>();
}

}  // namespace mcompress
