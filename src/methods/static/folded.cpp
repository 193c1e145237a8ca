#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/static.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

void check_weight(const Layer& layer, const FloatLayer& folded) {
  for (const at::Tensor& tensor : {layer.weight, layer.bias, folded.weight, folded.bias}) {
    if (!tensor.defined()) continue;
    const int64_t non_finite = count_elements_of(tensor).non_finite;
    if (non_finite == 0) continue;
    throw bad_data(
        "weight of layer '{0}' holds {1} values that are NaN or infinite, its bias and batch normalization "
        "included; repair the model or pass --ignore '^{0}$'",
        layer.name, non_finite);
  }
}

void check_input(const Layer& layer, const at::Tensor& input) {
  if (!layer.convolution || input.dim() == layer.weight.dim()) return;
  throw bad_data(
      "layer '{0}' is given inputs without a batch dimension, which integer convolutions need; use "
      "--ignore '^{0}$'",
      layer.name);
}

}  // namespace

FloatLayer fold(const Layer& layer, const std::optional<BatchNorm>& norm) {
  const at::Tensor weight = layer.weight.detach(),
                   bias = layer.bias.defined() ? layer.bias.detach() : at::Tensor();
  if (!norm) return {weight, bias};
  const at::Tensor factor =
      norm->weight.detach().to(at::kDouble) / (norm->variance.to(at::kDouble) + norm->eps).sqrt();
  at::Tensor shift = -norm->mean.to(at::kDouble);
  if (bias.defined()) shift = shift + bias.to(at::kDouble);
  return {(weight.to(at::kDouble) * by_rows(factor, weight)).to(at::kFloat),
          (shift * factor + norm->bias.detach().to(at::kDouble)).to(at::kFloat)};
}

FoldedProgram::FoldedProgram(const torch::jit::Module& program, std::vector<Layer> all,
                             std::vector<bool> wanted, std::vector<Followers> following)
    : layers(std::move(all)),
      chosen(std::move(wanted)),
      followers(std::move(following)),
      folded(layers.size()),
      open(program, layers, chosen, chosen) {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!chosen[i]) continue;
    folded[i] = fold(layers[i], followers[i].norm);
    check_weight(layers[i], folded[i]);
  }
}

at::Tensor FoldedProgram::run_layer(size_t layer, const at::Tensor& input) const {
  return apply_layer(layers[layer], input, folded[layer].weight, folded[layer].bias);
}

at::Tensor FoldedProgram::finish(size_t layer, const at::Tensor& output) const {
  return followers[layer].relu ? output.relu() : output;
}

at::Tensor FoldedProgram::run(const at::Tensor& input, const StaticLayers& made) {
  const c10::InferenceMode guard;
  return open.run(input, [&](size_t layer, const at::Tensor& x) {
    return made[layer] ? run_static(layers[layer], *made[layer], x) : finish(layer, run_layer(layer, x));
  });
}

std::vector<Observer> observe(FoldedProgram& program, const Dataset& data, int64_t batch_size) {
  const c10::InferenceMode guard;
  std::vector<Observer> observers;
  for (const Layer& layer : program.layers) observers.emplace_back(layer.name);
  Progress progress("calibrate", data.size());
  data.for_batches(batch_size, [&](const at::Tensor& batch, int64_t begin, int64_t end) {
    program.open.run(batch, [&](size_t layer, const at::Tensor& input) {
      check_input(program.layers[layer], input);
      if (program.layers[layer].kind != LayerKind::kEmbedding) observers[layer].add(input);
      return program.finish(layer, program.run_layer(layer, input));
    });
    progress.step(end - begin);
  });
  return observers;
}

}  // namespace mcompress
