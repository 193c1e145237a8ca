#include "mcompress/methods/program_gptq.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "mcompress/base/clock.h"
#include "mcompress/base/error.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/hessian.h"
#include "mcompress/model/open_program.h"

namespace mcompress {

namespace {

// The inputs of a layer as rows that its weight is multiplied with: for a convolution, what lies below the
// kernel.
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

at::Tensor hessian_of(const Layer& layer, const at::Tensor& input) {
  const int64_t channels = layer.weight.numel() / layer.weight.size(0);
  if (input.dim() < 2 || input.numel() == 0)
    throw bad_data("it is given an input of {} dimensions without a batch", input.dim());
  HessianSum sum(channels);
  for (int64_t begin = 0; begin < input.size(0); begin += kTogether) {
    const at::Tensor rows =
        input_rows(layer, input.slice(0, begin, std::min(begin + kTogether, input.size(0))));
    if (rows.size(1) != channels)
      throw bad_data("it is given {} features, and its weight takes {}", rows.size(1), channels);
    sum.add(rows.to(at::kFloat).contiguous());
  }
  const at::Tensor hessian = sum.mean();
  if (!hessian.isfinite().all().item<bool>()) throw bad_data("the calibration data gives it NaN or infinity");
  return hessian;
}

}  // namespace

std::vector<RoundedLayer> gptq_program(const torch::jit::Module& program, const std::vector<Layer>& layers,
                                       const ProgramGptqPlan& plan, const at::Tensor& batch) {
  const at::NoGradGuard guard;
  std::vector<bool> chosen;
  for (const Layer& layer : layers) chosen.push_back(plan.layers.contains(layer.name));
  OpenProgram open(program, layers, chosen, std::vector<bool>(layers.size(), false));
  Progress progress("gptq", static_cast<int64_t>(plan.layers.size()));
  std::map<WeightIdentity, RoundedLayer> by_weight;
  std::vector<RoundedLayer> result;
  std::map<std::string, bool> seen;
  open.run(batch, [&](size_t index, const at::Tensor& input) {
    const Layer& layer = layers[index];
    const at::Tensor exact = layer.weight.detach();
    auto found = by_weight.find(identity_of(layer.weight));
    if (found == by_weight.end()) {
      try {
        const auto start = Clock::now();
        GptqOptions options = plan.options;
        options.grid = plan.layers.at(layer.name);
        RoundedLayer rounded = round_layer(layer.name, exact.flatten(1).to(at::kFloat),
                                           factor_hessian(hessian_of(layer, input), options), options);
        rounded.seconds = seconds_since(start);
        found = by_weight.emplace(identity_of(layer.weight), std::move(rounded)).first;
      } catch (const Error& failure) {
        throw error(failure.code(), "layer '{}': {}", layer.name, failure.what());
      }
    }
    if (!seen[layer.name]) {
      seen[layer.name] = true;
      result.push_back(found->second);
      result.back().name = layer.name;
      progress.step();
      progress.line(line_of(result.back(), progress.seconds_left()));
    }
    const at::Tensor weight = plan.true_sequential ? dequantize_rows(found->second.weight, 0, exact.size(0))
                                                         .view(exact.sizes())
                                                         .to(exact.scalar_type())
                                                   : exact;
    return apply_layer(layer, input, weight, layer.bias);
  });
  return result;
}

}  // namespace mcompress
