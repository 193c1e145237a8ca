#include "refine.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "mcompress/methods/grid.h"

namespace mcompress {

namespace {

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

}  // namespace

std::map<size_t, IntChannel> search_weights(FoldedProgram& program, const Dataset& data,
                                            const StaticOptions& options) {
  const c10::InferenceMode guard;
  constexpr int64_t kRows = 128;
  std::map<size_t, IntChannel> weights;
  program.open.run(data.batch(0, std::min(kRows, data.size())), [&](size_t index, const at::Tensor& input) {
    const Layer& layer = program.layers[index];
    if (layer.kind != LayerKind::kEmbedding && !weights.contains(index))
      weights.emplace(index, search_by_output(layer, program.folded[index], input, options));
    return program.finish(index, program.run_layer(index, input));
  });
  return weights;
}

void correct_biases(FoldedProgram& program, StaticLayers& made, const Dataset& data) {
  const c10::InferenceMode guard;
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

}  // namespace mcompress
