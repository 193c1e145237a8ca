#include "layer_gradient.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr int64_t kParts = 8;

// Into how many parts a batch is split, by the multiplications that its gradient takes, so that small layers
// do not pay for it. The number of threads has no part in this.
int64_t parts_of(const at::Tensor& gradient, const at::Tensor& weight) {
  constexpr int64_t kWork = int64_t{1} << 23;  // of one part
  const int64_t work = gradient.numel() * (weight.numel() / std::max<int64_t>(1, weight.size(0)));
  return std::clamp<int64_t>(work / kWork, 1, kParts);
}

struct Gradients {
  at::Tensor weight, bias;
};

// oneDNN plans a kernel, and with it the order of its sums, for as many threads as there could be, even where
// it then runs on one. While this lives, that is one for the calling thread. The setting is that of the
// OpenMP library that LibTorch brings.
class OneThread {
 public:
  OneThread() { set(1); }
  ~OneThread() { set(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  static void set(int threads) {
    static const auto function =
        reinterpret_cast<void (*)(int)>(::dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    if (function != nullptr) function(threads);
  }
  int before_ = at::get_num_threads();
};

// Adds up what `part_of` makes of the rows [begin, end) of a batch, in a fixed order.
template <typename PartOf>
Gradients add_parts(int64_t rows, int64_t count, PartOf part_of) {
  std::array<Gradients, kParts> parts;
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    const c10::InferenceMode guard(false);
    const at::NoGradGuard no_gradients;
    const OneThread one_thread;
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = rows * part / count, end = rows * (part + 1) / count;
      if (begin < end) parts[static_cast<size_t>(part)] = part_of(begin, end);
    }
  });
  Gradients sum;
  for (const Gradients& part : parts) {
    if (!part.weight.defined()) continue;
    sum.weight = sum.weight.defined() ? sum.weight.add_(part.weight) : part.weight;
    sum.bias = sum.bias.defined() ? sum.bias.add_(part.bias) : part.bias;
  }
  return sum;
}

struct TrainConvolution : Function<TrainConvolution> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const Convolution* conv) {
    context->save_for_backward({input, weight});
    context->saved_data["biased"] = bias.has_value();
    context->saved_data["conv"] = reinterpret_cast<int64_t>(conv);
    const std::vector<int64_t> none(conv->stride.size(), 0);
    return at::convolution(input, weight, bias, conv->stride, conv->padding, conv->dilation, false, none,
                           conv->groups);
  }

  static variable_list backward(AutogradContext* context, variable_list outputs) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1];
    const auto* conv = reinterpret_cast<const Convolution*>(context->saved_data["conv"].toInt());
    const at::Tensor gradient = outputs[0].contiguous();
    const std::vector<int64_t> none(conv->stride.size(), 0), rows{weight.size(0)};
    const auto backward = [&](const at::Tensor& of, const at::Tensor& x, std::array<bool, 3> wanted) {
      return at::convolution_backward(of, x, weight, rows, conv->stride, conv->padding, conv->dilation, false,
                                      none, conv->groups, wanted);
    };
    at::Tensor input_gradient;
    if (context->needs_input_grad(0))
      input_gradient = std::get<0>(backward(gradient, input, {true, false, false}));
    const Gradients sum =
        add_parts(input.size(0), parts_of(gradient, weight), [&](int64_t begin, int64_t end) {
          const auto part =
              backward(gradient.slice(0, begin, end), input.slice(0, begin, end), {false, true, true});
          return Gradients{std::get<1>(part), std::get<2>(part)};
        });
    return {input_gradient, sum.weight, context->saved_data["biased"].toBool() ? sum.bias : at::Tensor(),
            at::Tensor()};
  }
};

struct TrainLinear : Function<TrainLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    context->save_for_backward({input, weight});
    context->saved_data["biased"] = bias.has_value();
    return at::linear(input, weight, bias);
  }

  static variable_list backward(AutogradContext* context, variable_list outputs) {
    const auto saved = context->get_saved_variables();
    const at::Tensor& weight = saved[1];
    const at::Tensor rows = saved[0].reshape({-1, weight.size(1)});
    const at::Tensor gradient = outputs[0].reshape({-1, weight.size(0)});
    at::Tensor input_gradient;
    if (context->needs_input_grad(0)) input_gradient = at::matmul(outputs[0], weight);
    const Gradients sum =
        add_parts(rows.size(0), parts_of(gradient, weight), [&](int64_t begin, int64_t end) {
          const at::Tensor part = gradient.slice(0, begin, end);
          return Gradients{part.t().mm(rows.slice(0, begin, end)), part.sum(0)};
        });
    return {input_gradient, sum.weight, context->saved_data["biased"].toBool() ? sum.bias : at::Tensor()};
  }
};

struct LsqRound : Function<LsqRound> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scale,
                            int64_t zero_point, int64_t low, int64_t high) {
    context->save_for_backward({x, scale});
    context->saved_data["grid"] = std::vector<int64_t>{zero_point, low, high};
    return codes_of(x / spread(scale, x), zero_point, low, high).sub_(zero_point).mul_(spread(scale, x));
  }

  static variable_list backward(AutogradContext* context, variable_list outputs) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &scale = saved[1], &gradient = outputs[0];
    const std::vector<int64_t> grid = context->saved_data["grid"].toIntVector();
    const at::Tensor steps = x / spread(scale, x);
    const at::Tensor codes = codes_of(steps, grid[0], grid[1], grid[2]).sub_(grid[0]);
    const at::Tensor inside =
        steps.round().add_(grid[0]).ge(grid[1]).logical_and_(steps.round().add_(grid[0]).le(grid[2]));
    const at::Tensor by_scale = gradient * (codes - steps * inside);
    // Sums over rows first: LibTorch would split one large sum over its threads.
    at::Tensor sum = by_scale.flatten(1).sum(1);
    if (scale.numel() == 1) sum = sum.sum().view({1});
    const double share = static_cast<double>(x.numel()) / static_cast<double>(scale.numel());
    return {gradient * inside, sum.div_(std::sqrt(share * static_cast<double>(grid[2]))), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor codes_of(const at::Tensor& steps, int64_t zero_point, int64_t low, int64_t high) {
    return steps.round().add_(zero_point).clamp_(low, high);
  }
  static at::Tensor spread(const at::Tensor& scale, const at::Tensor& x) {
    return scale.numel() == 1 ? scale : by_rows(scale, x);
  }
};

}  // namespace

at::Tensor apply_layer_for_training(const Layer& layer, const at::Tensor& input, const at::Tensor& weight,
                                    const at::Tensor& bias) {
  if (layer.kind == LayerKind::kEmbedding) return at::embedding(weight, input);
  const std::optional<at::Tensor> added = bias.defined() ? std::optional(bias) : std::nullopt;
  if (layer.kind == LayerKind::kLinear) return TrainLinear::apply(input, weight, added);
  const Convolution& conv = layer.convolution.value();
  const at::Tensor padded = conv.pad.empty() ? input : at::pad(input, conv.pad, conv.pad_mode);
  return TrainConvolution::apply(padded, weight, added, &conv);
}

at::Tensor lsq_round(const at::Tensor& x, const at::Tensor& scale, int64_t zero_point, int64_t low,
                     int64_t high) {
  return LsqRound::apply(x, scale, zero_point, low, high);
}

}  // namespace mcompress
