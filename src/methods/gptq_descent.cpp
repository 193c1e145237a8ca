#include "gptq_descent.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <c10/util/Half.h>

#include "mcompress/base/interrupt.h"
#include "mcompress/base/wide.h"
#include "mcompress/model/pieces.h"
#include "mcompress/model/tasks.h"

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

// One group of one row. Steps return by how much they change the loss.
struct GroupOfRow {
  int64_t count;
  const double* hessian;  // [count, count], of its channels
  double* level;          // codes less the zero point
  double* gradient;       // (W - Q) H
  double* step;           // what Q has gained, which is added to
  double scale;
  double lowest, highest;  // level

  // The least of loss over the scale lies at scale + level . gradient / level H level.
  double step_scale(std::vector<double>& product) {
    std::fill(product.begin(), product.begin() + count, 0.0);
    for (int64_t j = 0; j < count; ++j) {
      if (level[j] != 0) add(level[j], hessian + j * count, count, product.data());
    }
    const double slope = dot(level, gradient, count), curvature = dot(level, product.data(), count);
    if (!(curvature > 0)) return 0;
    const double best = static_cast<c10::Half>(static_cast<float>(scale + slope / curvature));
    const double change = best - scale, gain = change * (change * curvature - 2 * slope);
    if (best == 0 || !std::isfinite(best) || gain >= 0) return 0;
    scale = best;
    add(-change, product.data(), count, gradient);
    add(change, level, count, step);
    return gain;
  }

  double step_codes() {
    double gain = 0;
    for (int64_t j = 0; j < count; ++j) {
      const double* row = hessian + j * count;
      if (!(row[j] > 0)) continue;
      const double best = std::clamp(rounded(level[j] + gradient[j] / row[j] / scale), lowest, highest);
      const double change = scale * (best - level[j]);
      if (change == 0) continue;
      gain += change * (change * row[j] - 2 * gradient[j]);
      level[j] = best;
      step[j] += change;
      add(-change, row, count, gradient);
    }
    return gain;
  }
};

// Takes steps [rows, count] times across [count, channels] from the gradient. Most steps of later sweeps are
// 0.
void follow(const at::Tensor& steps, const at::Tensor& across, const at::Tensor& gradient) {
  constexpr int64_t kSparse = 8;  // of so many steps one may be taken before a product of all is faster
  const int64_t rows = steps.size(0), count = steps.size(1), channels = across.size(1);
  const double* step = steps.const_data_ptr<double>();
  const int64_t taken = steps.numel() - std::count(step, step + steps.numel(), 0.0);
  if (taken * kSparse > steps.numel()) {
    gradient.addmm_(steps, across, 1, -1);
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    double* to = gradient.data_ptr<double>() + row * gradient.stride(0);
    for (int64_t j = 0; j < count; ++j) {
      const double change = step[row * count + j];
      if (change != 0) add(-change, across.const_data_ptr<double>() + j * across.stride(0), channels, to);
    }
  }
}

// Channels of a group lie beside each other.
struct Descent {
  at::Tensor hessian;
  at::Tensor scale, zero;  // float64 [rows, groups]
  at::Tensor level;        // float64 [rows, channels]
  at::Tensor gradient;     // of the loss with regard to -Q / 2: (W - Q) H
  double largest;          // code
  double loss;

  // All rows of channels [begin, end), which are one group. Gradients of the channels from `first` on follow.
  void step(int64_t group, int64_t begin, int64_t end, int64_t first) {
    const int64_t rows = level.size(0), channels = level.size(1), count = end - begin;
    const at::Tensor inside = hessian.slice(0, begin, end).slice(1, begin, end).contiguous();
    const at::Tensor across = hessian.slice(0, begin, end).slice(1, first);
    constexpr int64_t kRows = 32;  // fixed, so that sums are made in the same order whatever runs them
    const int64_t chunks = (rows + kRows - 1) / kRows;
    std::vector<double> gains(static_cast<size_t>(chunks), 0.0);
    for_each_task(chunks, [&](int64_t chunk) {
      std::vector<double> product(static_cast<size_t>(count)), near(static_cast<size_t>(count));
      const int64_t top = chunk * kRows, bottom = std::min(top + kRows, rows);
      const at::Tensor steps = at::zeros({bottom - top, count}, at::kDouble);
      for (int64_t row = top; row < bottom; ++row) {
        std::copy_n(gradient.const_data_ptr<double>() + row * channels + begin, count, near.data());
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
        double& gain = gains[static_cast<size_t>(chunk)];
        gain += at_hand.step_scale(product);
        gain += at_hand.step_codes();
        of_row = at_hand.scale;
      }
      if (first < channels) follow(steps, across, gradient.slice(0, top, bottom).slice(1, first));
    });
    for (const double gain : gains) loss += gain;
  }
};

}  // namespace

double descend(IntGroup& weight, const at::Tensor& exact, const at::Tensor& hessian, int sweeps) {
  const int64_t channels = exact.size(1);
  const at::Tensor order = weight.groups.argsort(true, 0, false),
                   groups = weight.groups.index_select(0, order);
  const bool in_order = order.equal(at::arange(channels));
  Descent descent;
  descent.hessian = in_order ? hessian : take_columns(hessian.index_select(0, order), order);
  descent.scale = weight.scale.to(at::kDouble);
  descent.zero = weight.zero.to(at::kDouble);
  const at::Tensor zero = take_columns(descent.zero, groups);
  descent.level = take_columns(weight.codes, order).to(at::kDouble).sub_(zero);
  descent.largest = (1 << weight.bits) - 1;
  {
    const at::Tensor error = take_columns(exact, order) - descent.level * take_columns(descent.scale, groups);
    descent.gradient = error.matmul(descent.hessian);
    descent.loss = (error * descent.gradient).sum().item<double>();
  }
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int64_t begin = 0; begin < channels;) {
      check_interrupt();
      const auto group = groups[begin].item<int64_t>();
      const int64_t end = begin + (groups == group).sum().item<int64_t>();
      // Nothing looks at channels that the last sweep has passed.
      descent.step(group, begin, end, sweep + 1 < sweeps ? 0 : end);
      begin = end;
    }
  }
  weight.scale = descent.scale.to(at::kHalf);
  weight.codes = take_columns((descent.level + zero).to(at::kByte), order.argsort());
  return descent.loss;
}

}  // namespace mcompress
