#include "mcompress/methods/input_norm.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"

namespace mcompress {

namespace {

// Adds the squares of `rows` [n, features] to each feature in the order of the rows, so that the sum is the
// same for any number of threads.
void add_squares(const at::Tensor& rows, const at::Tensor& squares) {
  const at::Tensor values = rows.to(at::kFloat).contiguous();
  const float* from = values.const_data_ptr<float>();
  double* to = squares.data_ptr<double>();
  const int64_t count = values.size(0), features = values.size(1);
  constexpr int64_t kGrain = 64;
  at::parallel_for(0, features, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t feature = begin; feature < end; ++feature) {
        const double value = from[row * features + feature];
        to[feature] += value * value;
      }
    }
  });
}

}  // namespace

InputNorm::InputNorm(const Layer& layer)
    : name_(layer.name),
      inputs_(layer.weight.size(1)),
      kernel_(layer.weight.numel() / std::max<int64_t>(1, layer.weight.size(0) * layer.weight.size(1))),
      spatial_(layer.weight.dim() - 2) {}

void InputNorm::add(const at::Tensor& input) {
  const int64_t axis = input.dim() - 1 - spatial_;
  const int64_t features = axis < 0 ? 0 : input.size(axis);
  if (features == 0 || features % inputs_ != 0 || (squares_.defined() && features != squares_.numel()) ||
      (spatial_ == 0 && features != inputs_)) {
    throw bad_data("layer '{}' is given an input of {} dimensions and {} features, and its weight takes {}",
                   name_, input.dim(), features, inputs_);
  }
  if (!squares_.defined()) squares_ = at::zeros({features}, at::kDouble);
  add_squares(input.movedim(axis, -1).reshape({-1, features}), squares_);
  if (!squares_.isfinite().all().item<bool>()) {
    throw bad_data("layer '{}' is given NaN or infinity by the calibration data", name_);
  }
}

at::Tensor InputNorm::norm() const {
  if (!squares_.defined()) return {};
  return squares_.sqrt().to(at::kFloat).view({-1, inputs_}).repeat_interleave(kernel_, 1);
}

}  // namespace mcompress
