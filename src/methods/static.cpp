#include "mcompress/methods/static.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/grid.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

using MadeLayers = std::vector<std::optional<StaticLayer>>;

int64_t channel_axis(const Layer& layer, const at::Tensor& output) {
  return output.dim() - 1 - (layer.kind == LayerKind::kLinear ? 0 : layer.weight.dim() - 2);
}

// [channels], float64 sums so that the mean of many values is exact enough.
at::Tensor channel_means(const Layer& layer, const at::Tensor& output) {
  std::vector<int64_t> others;
  for (int64_t i = 0; i < output.dim(); ++i) {
    if (i != channel_axis(layer, output)) others.push_back(i);
  }
  return output.to(at::kDouble).mean(others);
}

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

// Whether the layer's kernel adds up pairs of products in 16 bits on some CPUs.
bool needs_pairs(const Layer& layer, const StaticOptions& options) {
  constexpr int kByte = 8;
  if (options.activation_bits != kByte || options.weight_bits != kByte) return false;
  StaticLayer trial;  // what decides the runtime is the bits
  trial.weight.bits = options.weight_bits;
  trial.input = InputGrid{.bits = kByte};
  return static_runtime_of(layer, trial, options.runtime) == Runtime::kInt8;
}

IntChannel quantize_weight(const FloatLayer& folded, bool pairs, const StaticOptions& options) {
  const RowGrid grid{.bits = options.weight_bits, .pairs = pairs, .search = options.search_weights};
  return options.per_tensor ? quantize_tensor(folded.weight, grid) : quantize_rows(folded.weight, grid);
}

// The mean square of each channel, [channels] float64; without the mean where a bias takes it up.
at::Tensor channel_error(const Layer& layer, const at::Tensor& error, bool centred) {
  const at::Tensor squares = channel_means(layer, error.square());
  return centred ? squares - channel_means(layer, error).square() : squares;
}

// Of the scales from the largest to two fifths of it, for each output channel the one with the least squared
// error of the layer's outputs on `input`.
IntChannel search_by_output(const Layer& layer, const FloatLayer& folded, const at::Tensor& input,
                            const StaticOptions& options) {
  const IntChannel plain = quantize_rows(folded.weight, {.bits = options.weight_bits});
  const at::Tensor exact = apply_layer(layer, input, folded.weight, {});
  at::Tensor best = plain.scale.clone(), least;
  constexpr int kLast = 40, kStep = 3;
  for (int percent = 100; percent >= kLast; percent -= kStep) {
    const IntChannel trial = round_rows(folded.weight, plain.scale * (percent / 100.0), options.weight_bits);
    const at::Tensor weight = dequantize_rows(trial, 0, trial.codes.size(0)).view_as(trial.codes);
    const at::Tensor error =
        channel_error(layer, apply_layer(layer, input, weight, {}) - exact, options.bias_correction);
    if (!least.defined()) {
      least = error;
      continue;
    }
    best = at::where(error < least, trial.scale, best);
    least = at::minimum(error, least);
  }
  return round_rows(folded.weight, best, options.weight_bits);
}

// Weights of the layers in `wanted` that the first rows of `data` reach.
std::map<size_t, IntChannel> search_weights(FoldedProgram& program, const std::vector<bool>& wanted,
                                            const Dataset& data, const StaticOptions& options) {
  constexpr int64_t kRows = 128;
  std::map<size_t, IntChannel> weights;
  program.open.run(data.batch(0, std::min(kRows, data.size())), [&](size_t index, const at::Tensor& input) {
    const Layer& layer = program.layers[index];
    if (wanted[index] && layer.kind != LayerKind::kEmbedding && !weights.contains(index))
      weights.emplace(index, search_by_output(layer, program.folded[index], input, options));
    return program.finish(index, program.run_layer(index, input));
  });
  return weights;
}

// Mean and deviation of each channel of a layer's output.
struct Moments {
  at::Tensor mean, deviation;
  Moments(const Layer& layer, const at::Tensor& output)
      : mean(channel_means(layer, output)), deviation(channel_error(layer, output, true).sqrt()) {}
};

// How much more a channel must vary; 1 where it does not vary, and never far from it.
at::Tensor gain_of(const Moments& exact, const Moments& rounded) {
  constexpr double kMost = 1.25;
  const at::Tensor gain = (exact.deviation / rounded.deviation).nan_to_num(1, 1, 1);
  return gain.clamp(1 / kMost, kMost).to(at::kFloat);
}

// Measures the outputs of layers in the float program, and sets right mean and deviation of each layer's
// integer form, in the order in which the data passes.
void correct_biases(FoldedProgram& program, MadeLayers& made, const Dataset& data) {
  constexpr int64_t kRows = 256;
  const at::Tensor batch = data.batch(0, std::min(kRows, data.size()));
  std::map<size_t, Moments> moments;  // of a layer's first call
  program.open.run(batch, [&](size_t layer, const at::Tensor& input) {
    const at::Tensor output = program.run_layer(layer, input);
    if (made[layer] && program.layers[layer].kind != LayerKind::kEmbedding && !moments.contains(layer))
      moments.emplace(layer, Moments(program.layers[layer], output));
    return program.finish(layer, output);
  });
  program.open.run(batch, [&](size_t index, const at::Tensor& input) {
    if (!made[index]) return program.finish(index, program.run_layer(index, input));
    const Layer& layer = program.layers[index];
    StaticLayer& corrected = *made[index];
    if (const auto exact = moments.find(index); exact != moments.end()) {
      StaticLayer linear = corrected;
      linear.relu = false;
      corrected.stretch = gain_of(exact->second, Moments(layer, run_static(layer, linear, input)));
      corrected.weight.scale = corrected.weight.scale * corrected.stretch;
      linear.weight = corrected.weight;
      const Moments rounded(layer, run_static(layer, linear, input));
      const at::Tensor missing = (exact->second.mean - rounded.mean).to(at::kFloat);
      corrected.bias = corrected.bias.defined() ? corrected.bias + missing : missing;
      moments.erase(exact);
    }
    return run_static(layer, corrected, input);
  });
}

}  // namespace

FloatLayer fold(const Layer& layer, const std::optional<BatchNorm>& norm) {
  const at::Tensor weight = layer.weight.detach(),
                   bias = layer.bias.defined() ? layer.bias.detach() : at::Tensor();
  if (!norm) return {weight, bias};
  const at::Tensor factor =
      norm->weight.detach().to(at::kDouble) / (norm->variance.to(at::kDouble) + norm->eps).sqrt();
  std::vector<int64_t> shape(static_cast<size_t>(weight.dim()), 1);
  shape[0] = factor.numel();
  at::Tensor shift = -norm->mean.to(at::kDouble);
  if (bias.defined()) shift = shift + bias.to(at::kDouble);
  return {(weight.to(at::kDouble) * factor.view(shape)).to(at::kFloat),
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

at::Tensor FoldedProgram::run(const at::Tensor& input, const MadeLayers& made) {
  const c10::InferenceMode guard;
  return open.run(input, [&](size_t layer, const at::Tensor& x) {
    return made[layer] ? run_static(layers[layer], *made[layer], x) : finish(layer, run_layer(layer, x));
  });
}

namespace {

void check_input(const Layer& layer, const at::Tensor& input) {
  if (!layer.convolution || input.dim() == layer.weight.dim()) return;
  throw bad_data(
      "layer '{0}' is given inputs without a batch dimension, which integer convolutions need; use "
      "--ignore '^{0}$'",
      layer.name);
}

}  // namespace

std::vector<Observer> observe(FoldedProgram& program, const Dataset& data, int64_t batch_size) {
  const c10::InferenceMode guard;
  std::vector<Observer> observers;
  for (const Layer& layer : program.layers) observers.emplace_back(layer.name);
  Progress progress("calibrate", data.size());
  for (int64_t begin = 0; begin < data.size(); begin += batch_size) {
    const int64_t end = std::min(begin + batch_size, data.size());
    program.open.run(data.batch(begin, end), [&](size_t layer, const at::Tensor& input) {
      check_input(program.layers[layer], input);
      if (program.layers[layer].kind != LayerKind::kEmbedding) observers[layer].add(input);
      return program.finish(layer, program.run_layer(layer, input));
    });
    progress.step(end - begin);
  }
  return observers;
}

MadeLayers quantize_unseen(FoldedProgram& program, const StaticOptions& options) {
  std::vector<Observer> observers;
  for (const Layer& layer : program.layers) {
    observers.emplace_back(layer.name);
    observers.back().add(at::ones({1}));
  }
  StaticOptions plain = options;
  plain.bias_correction = false;
  return quantize_static(program, observers, program.chosen, {}, plain);
}

MadeLayers quantize_static(FoldedProgram& program, const std::vector<Observer>& observers,
                           const std::vector<bool>& wanted, const Dataset& data,
                           const StaticOptions& options) {
  const c10::InferenceMode guard;
  MadeLayers made(program.layers.size());
  std::map<WeightIdentity, IntChannel> shared;  // weights of several layers stay one in the file
  std::set<WeightIdentity> paired;
  for (size_t i = 0; i < program.layers.size(); ++i) {
    if (wanted[i] && needs_pairs(program.layers[i], options))
      paired.insert(identity_of(program.layers[i].weight));
  }
  std::map<size_t, IntChannel> searched;
  if (options.search_weights && options.weight_bits < 8 && !options.per_tensor && data.inputs.defined())
    searched = search_weights(program, wanted, data, options);
  Progress progress("quantize", static_cast<int64_t>(program.layers.size()));
  for (size_t i = 0; i < program.layers.size(); ++i) {
    progress.step();
    const Layer& layer = program.layers[i];
    const bool embedding = layer.kind == LayerKind::kEmbedding;
    if (!wanted[i] || (!embedding && options.activation_bits && observers[i].empty())) continue;
    IntChannel weight;
    if (const auto found = searched.find(i); found != searched.end()) {
      weight = found->second;
    } else if (program.followers[i].norm) {
      weight = quantize_weight(program.folded[i], paired.contains(identity_of(layer.weight)), options);
    } else {
      const auto [found, is_new] = shared.try_emplace(identity_of(layer.weight));
      if (is_new)
        found->second =
            quantize_weight(program.folded[i], paired.contains(identity_of(layer.weight)), options);
      weight = found->second;
    }
    std::optional<InputGrid> input;
    if (!embedding && options.activation_bits) {
      const Range range = observers[i].range(options.observer, *options.activation_bits, options.percentile);
      input = grid_of(range, *options.activation_bits);
    }
    made[i] = StaticLayer{weight, input, program.folded[i].bias, program.followers[i].relu};
  }
  if (options.bias_correction) correct_biases(program, made, data);
  return made;
}

std::vector<std::optional<Damage>> measure_damage(FoldedProgram& program, const MadeLayers& made,
                                                  const Dataset& data, int64_t batch_size) {
  struct Sums {
    double noise = 0;
    int64_t hits = 0;
  };
  std::vector<Sums> sums(made.size());
  double signal = 0;
  const MadeLayers none(made.size());
  const auto count =
      std::count_if(made.begin(), made.end(), [](const auto& layer) { return layer.has_value(); });
  Progress progress("sensitivity", data.size() * count);
  for (int64_t begin = 0; begin < data.size(); begin += batch_size) {
    const int64_t end = std::min(begin + batch_size, data.size());
    const at::Tensor batch = data.batch(begin, end);
    const at::Tensor exact = program.run(batch, none);
    signal += exact.square().sum(at::kDouble).item<double>();
    for (size_t i = 0; i < made.size(); ++i) {
      if (!made[i]) continue;
      MadeLayers one(made.size());
      one[i] = made[i];
      const at::Tensor output = program.run(batch, one);
      sums[i].noise += (output - exact).square().sum(at::kDouble).item<double>();
      if (data.labels.defined() && output.dim() == 2)
        sums[i].hits += (output.argmax(1) == data.labels.slice(0, begin, end)).sum().item<int64_t>();
      progress.step(end - begin);
    }
  }
  std::vector<std::optional<Damage>> result(made.size());
  for (size_t i = 0; i < made.size(); ++i) {
    if (!made[i]) continue;
    result[i] = Damage{10.0 * std::log10(signal / sums[i].noise), std::nullopt};
    if (data.labels.defined())
      result[i]->top1 = static_cast<double>(sums[i].hits) / static_cast<double>(data.size());
  }
  return result;
}

}  // namespace mcompress
