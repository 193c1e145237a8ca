#include "mcompress/methods/qat.h"

#include <set>

#include <ATen/ATen.h>

#include "layer_gradient.h"
#include "mcompress/base/error.h"
#include "mcompress/methods/grid.h"

namespace mcompress {

namespace {

constexpr double kLeastScale = 1e-8;  // of trained scales

at::Tensor leaf(const at::Tensor& value) { return value.detach().clone().requires_grad_(true); }

at::Tensor by_rows(const at::Tensor& rows, const at::Tensor& like) {
  std::vector<int64_t> shape(static_cast<size_t>(like.dim()), 1);
  shape[0] = rows.numel();
  return rows.view(shape);
}

// A layer while it is trained. Tensors that are not needed are undefined.
struct QatLayer {
  Layer layer;
  bool opened = false, rounded = false, relu = false;
  at::Tensor weight, bias;        // trained; with the batch normalization folded in, but for a live one
  std::optional<BatchNorm> norm;  // live: weight and bias are trained
  int weight_bits = 8;
  bool pairs = false;       // of RowGrid
  at::Tensor ratio;         // [rows]: scale by largest weight, below 8 bits
  at::Tensor weight_scale;  // [rows], trained with LSQ
  std::optional<int> input_bits;
  at::Tensor low, high;    // [1]: range of the inputs
  at::Tensor input_scale;  // [1], trained with LSQ
  int64_t zero_point = 0;  // for it
};

bool is_norm(const torch::jit::Module& module) {
  return module.type()->name()->name().starts_with("BatchNorm");
}

}  // namespace

struct QatModel::Impl {
  torch::jit::Module source;
  QatOptions options;
  std::vector<QatLayer> layers;
  OpenProgram open;
  bool training = false, norm_is_live = false, observing = false, all_frozen = true;

  Impl(const torch::jit::Module& program, const std::vector<Layer>& all, const std::vector<bool>& opened,
       const std::vector<bool>& folded, const QatOptions& chosen)
      : source(program), options(chosen), open(program, all, opened, folded) {}

  // What the user froze stays frozen; in a program that was exported without gradients all is trained.
  bool trains(const at::Tensor& parameter) const { return all_frozen || parameter.requires_grad(); }

  // Weight and bias as the layer applies them once batch statistics are frozen.
  FloatLayer folded(const QatLayer& layer) const {
    if (!layer.norm) return {layer.weight, layer.bias};
    const BatchNorm& norm = *layer.norm;
    const at::Tensor factor = norm.weight * (norm.variance + norm.eps).rsqrt();
    const at::Tensor mean = layer.bias.defined() ? norm.mean - layer.bias : norm.mean;
    return {layer.weight * by_rows(factor, layer.weight), norm.bias - mean * factor};
  }

  at::Tensor scale_of(const QatLayer& layer, const at::Tensor& weight) const {
    const at::Tensor values = weight.detach();
    constexpr int kByte = 8;
    if (layer.weight_bits == kByte)
      return row_scales(values, {.pairs = layer.pairs}).clamp_min_(std::numeric_limits<float>::min());
    return (layer.ratio * values.abs().flatten(1).amax(1)).clamp_min_(std::numeric_limits<float>::min());
  }

  // The scales that rounding takes: with LSQ the trained ones, but for what the kernels' sums allow.
  at::Tensor effective_scale(const QatLayer& layer, const at::Tensor& weight) const {
    if (!layer.weight_scale.defined()) return scale_of(layer, weight);
    const at::Tensor scale = layer.weight_scale.clamp_min(kLeastScale);
    return layer.pairs ? at::maximum(scale, scale_of(layer, weight)) : scale;
  }

  at::Tensor round_weight(const QatLayer& layer, const at::Tensor& weight) const {
    const auto [low, high] = code_range(layer.weight_bits);
    const at::Tensor scale = effective_scale(layer, weight);
    if (layer.weight_scale.defined()) return lsq_round(weight, scale, 0, low, high);
    return at::fake_quantize_per_channel_affine(weight, scale, at::zeros({scale.numel()}, at::kInt), 0, low,
                                                high);
  }

  InputGrid input_grid(const QatLayer& layer) const {
    if (!layer.input_scale.defined())
      return grid_of({layer.low.item<double>(), layer.high.item<double>()}, *layer.input_bits);
    return {std::max(layer.input_scale.item<double>(), kLeastScale), layer.zero_point, *layer.input_bits};
  }

  at::Tensor round_input(QatLayer& layer, const at::Tensor& input) const {
    if (training && observing && !layer.input_scale.defined()) {
      constexpr double kWeight = 0.01;
      const auto [least, largest] = input.detach().aminmax();
      layer.low.add_(least.clamp_max(0).view({1}) - layer.low, kWeight);
      layer.high.add_(largest.clamp_min(0).view({1}) - layer.high, kWeight);
    }
    const int64_t top = (int64_t{1} << *layer.input_bits) - 1;
    if (layer.input_scale.defined()) {
      return lsq_round(input, layer.input_scale.clamp_min(kLeastScale), layer.zero_point, 0, top);
    }
    const InputGrid grid = input_grid(layer);
    return at::fake_quantize_per_tensor_affine(input, grid.scale, grid.zero_point, 0, top);
  }

  at::Tensor run_layer(size_t index, const at::Tensor& input) {
    QatLayer& layer = layers[index];
    const at::Tensor x = layer.input_bits && layer.rounded ? round_input(layer, input) : input;
    if (!layer.rounded) return apply_layer_for_training(layer.layer, x, layer.weight, layer.bias);
    const FloatLayer float_layer = folded(layer);
    const at::Tensor weight = round_weight(layer, float_layer.weight);
    const bool live = layer.norm && training && norm_is_live;
    at::Tensor y;
    if (live) {
      const BatchNorm& norm = *layer.norm;
      const at::Tensor factor = norm.weight * (norm.variance + norm.eps).rsqrt();
      const at::Tensor rows = by_rows(factor.detach(), weight);  // 0 where a channel is switched off
      const at::Tensor undone = at::where(rows == 0, layer.weight, weight / at::where(rows == 0, 1, rows));
      y = apply_layer_for_training(layer.layer, x, undone, layer.bias);
      y = at::batch_norm(y, norm.weight, norm.bias, norm.mean, norm.variance, true, norm.momentum, norm.eps,
                         false);
    } else {
      y = apply_layer_for_training(layer.layer, x, weight, float_layer.bias);
    }
    return layer.relu ? y.relu() : y;
  }

  at::Tensor run(const at::Tensor& input) {
    return open.run(input, [this](size_t layer, const at::Tensor& x) { return run_layer(layer, x); });
  }

  void set_training(bool on) {
    training = on;
    open.program().train(on);
    for (const torch::jit::Module& module : open.program().modules()) {
      if (is_norm(module) && !norm_is_live) torch::jit::Module(module).train(false);
    }
  }

  std::string find_non_finite(const at::Tensor& input) {
    const c10::InferenceMode guard;
    std::string found;
    const auto check = [&](size_t index, const at::Tensor& value) {
      if (found.empty() && !value.isfinite().all().item<bool>()) found = layers[index].layer.name;
    };
    open.run(input, [&](size_t index, const at::Tensor& x) {
      check(index, layers[index].weight);
      const at::Tensor y = run_layer(index, x);
      check(index, y);
      return y;
    });
    return found;
  }
};

QatModel::QatModel(const torch::jit::Module& program, const std::vector<Layer>& all,
                   const std::vector<Followers>& followers,
                   const std::vector<std::optional<StaticLayer>>& made, const QatOptions& options) {
  std::vector<bool> opened, folds;
  std::vector<QatLayer> layers;
  constexpr int kByte = 8;
  for (size_t i = 0; i < all.size(); ++i) {
    QatLayer layer;
    layer.layer = all[i];
    const bool convolution = all[i].kind == LayerKind::kConv1d || all[i].kind == LayerKind::kConv2d;
    layer.opened = all[i].obstacle.empty() && (!convolution || all[i].convolution);
    layer.rounded = made[i].has_value();
    opened.push_back(layer.opened);
    folds.push_back(layer.rounded);
    if (!layer.rounded) {
      layer.weight = all[i].weight;  // trained in place
      layer.bias = all[i].bias;
      layers.push_back(std::move(layer));
      continue;
    }
    const StaticLayer& start = *made[i];
    layer.relu = start.relu;
    layer.weight_bits = start.weight.bits;
    at::Tensor folded = fold(all[i], followers[i].norm).weight;
    if (start.stretch.defined())
      folded = folded * by_rows(start.stretch, folded);  // so that it has these codes
    const bool live = options.freeze_bn_after > 0 && followers[i].norm;
    if (live) {
      layer.norm = followers[i].norm;
      layer.norm->weight = leaf(layer.norm->weight);
      layer.norm->bias = leaf(layer.norm->bias);
      layer.norm->mean = layer.norm->mean.detach().clone();
      layer.norm->variance = layer.norm->variance.detach().clone();
    }
    layer.weight = leaf(live ? all[i].weight : folded);
    const at::Tensor bias = live ? all[i].bias : start.bias;
    if (bias.defined()) layer.bias = leaf(bias);
    layer.ratio =
        start.weight.scale / folded.abs().flatten(1).amax(1).clamp_min(std::numeric_limits<float>::min());
    if (start.input) {
      layer.input_bits = start.input->bits;
      const double top = (1 << start.input->bits) - 1, zero = static_cast<double>(start.input->zero_point);
      layer.low = at::full({1}, -zero * start.input->scale, at::kFloat);
      layer.high = at::full({1}, (top - zero) * start.input->scale, at::kFloat);
      layer.zero_point = start.input->zero_point;
    }
    layer.pairs = static_runtime_of(all[i], start, options.grid.runtime) == Runtime::kInt8 &&
                  layer.input_bits == kByte && layer.weight_bits == kByte;
    if (options.learn_scales) {
      layer.weight_scale = leaf(start.weight.scale);
      if (start.input) layer.input_scale = leaf(at::full({1}, start.input->scale, at::kFloat));
    }
    layers.push_back(std::move(layer));
  }
  impl_ = std::make_unique<Impl>(program, all, opened, folds, options);
  impl_->layers = std::move(layers);
  for (const at::Tensor& parameter : program.parameters())
    impl_->all_frozen = impl_->all_frozen && !parameter.requires_grad();
  impl_->set_training(false);
}

QatModel::~QatModel() = default;
QatModel::QatModel(QatModel&&) noexcept = default;

TrainTask QatModel::task() {
  TrainTask task;
  std::set<const void*> seen;
  const auto add = [&](const std::string& name, at::Tensor value, bool decays) {
    if (!value.defined() || value.scalar_type() != at::kFloat || !seen.insert(value.data_ptr()).second)
      return;
    value.requires_grad_(true);
    task.parameters.push_back({name, value, decays});
  };
  for (QatLayer& layer : impl_->layers) {
    const std::string& name = layer.layer.name;
    if (!layer.rounded || !impl_->trains(layer.layer.weight)) continue;
    add(name + ".weight", layer.weight, true);
    add(name + ".bias", layer.bias, false);
    add(name + ".weight_scale", layer.weight_scale, false);
    add(name + ".input_scale", layer.input_scale, false);
    if (layer.norm) {
      add(name + ".norm.weight", layer.norm->weight, false);
      add(name + ".norm.bias", layer.norm->bias, false);
      task.buffers.emplace_back(name + ".norm.mean", layer.norm->mean);
      task.buffers.emplace_back(name + ".norm.variance", layer.norm->variance);
    }
    if (layer.low.defined()) {
      task.buffers.emplace_back(name + ".low", layer.low);
      task.buffers.emplace_back(name + ".high", layer.high);
    }
  }
  for (const auto& parameter : impl_->open.program().named_parameters()) {
    if (impl_->trains(parameter.value)) add(parameter.name, parameter.value, parameter.value.dim() > 1);
  }
  for (const auto& layer : impl_->layers) {
    if (layer.rounded || !layer.opened || !impl_->trains(layer.weight)) continue;
    add(layer.layer.name + ".weight", layer.weight, true);
    add(layer.layer.name + ".bias", layer.bias, false);
  }
  for (const auto& buffer : impl_->open.program().named_buffers()) {
    if (buffer.value.scalar_type() == at::kFloat || buffer.value.scalar_type() == at::kLong)
      task.buffers.emplace_back(buffer.name, buffer.value);
  }
  task.begin_epoch = [this](int64_t epoch) {
    impl_->norm_is_live = epoch < impl_->options.freeze_bn_after;
    impl_->observing = epoch < impl_->options.freeze_observers_after;
    impl_->set_training(true);
  };
  task.forward = [this](const at::Tensor& inputs) { return impl_->run(inputs); };
  task.find_non_finite = [this](const at::Tensor& inputs) { return impl_->find_non_finite(inputs); };
  return task;
}

at::Tensor QatModel::evaluate(const at::Tensor& input) {
  const bool was_training = impl_->training;
  if (was_training) impl_->set_training(false);
  const c10::InferenceMode guard;
  const at::Tensor output = impl_->run(input);
  if (was_training) impl_->set_training(true);
  return output;
}

std::vector<std::optional<StaticLayer>> QatModel::convert() {
  impl_->set_training(false);
  const at::NoGradGuard guard;
  std::vector<std::optional<StaticLayer>> made(impl_->layers.size());
  for (size_t i = 0; i < made.size(); ++i) {
    const QatLayer& layer = impl_->layers[i];
    if (!layer.rounded) continue;
    const FloatLayer folded = impl_->folded(layer);
    const at::Tensor scale = impl_->effective_scale(layer, folded.weight).detach();
    std::optional<InputGrid> input;
    if (layer.input_bits) input = impl_->input_grid(layer);
    const at::Tensor bias = folded.bias.defined() ? folded.bias.detach().clone() : at::Tensor();
    made[i] =
        StaticLayer{round_rows(folded.weight.detach(), scale, layer.weight_bits), input, bias, layer.relu};
  }
  return made;
}

const torch::jit::Module& QatModel::program() {
  impl_->set_training(false);
  impl_->source.eval();
  return impl_->source;
}

}  // namespace mcompress
