#include "program_inputs.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/methods/hessian.h"

namespace mcompress {

namespace {

at::Tensor input_rows(const Layer& layer, const at::Tensor& input) {
  if (layer.kind == LayerKind::kLinear) return input.reshape({-1, input.size(-1)});
  const Convolution& conv = *layer.convolution;
  const at::Tensor padded = conv.pad.empty() ? input : at::pad(input, conv.pad, conv.pad_mode);
  const at::Tensor columns =
      at::im2col(padded, layer.weight.sizes().slice(2), conv.dilation, conv.padding, conv.stride);
  return columns.transpose(-1, -2).reshape({-1, columns.size(-2)});
}

// Samples whose rows are held at once: those of a convolution repeat the input for each place of the kernel.
constexpr int64_t kTogether = 8;

}  // namespace

at::Tensor hessian_of(const Layer& layer, const at::Tensor& input,
                      const std::function<void(const at::Tensor& rows)>& also) {
  const int64_t channels = layer.weight.numel() / layer.weight.size(0);
  if (input.dim() < 2 || input.numel() == 0)
    throw bad_data("it is given an input of {} dimensions without a batch", input.dim());
  HessianSum sum(channels);
  for (int64_t begin = 0; begin < input.size(0); begin += kTogether) {
    const at::Tensor rows =
        input_rows(layer, input.slice(0, begin, std::min(begin + kTogether, input.size(0))));
    if (rows.size(1) != channels)
      throw bad_data("it is given {} features, and its weight takes {}", rows.size(1), channels);
    const at::Tensor values = rows.to(at::kFloat).contiguous();
    sum.add(values);
    also(values);
  }
  const at::Tensor hessian = sum.mean();
  if (!hessian.isfinite().all().item<bool>()) throw bad_data("the calibration data gives it NaN or infinity");
  return hessian;
}

}  // namespace mcompress
