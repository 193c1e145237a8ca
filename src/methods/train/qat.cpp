#include "mcompress/methods/qat.h"

#include <set>

#include <ATen/ATen.h>

#include "qat_layer.h"

namespace mcompress {

namespace {

bool is_norm(const torch::jit::Module& module) {
  return module.type()->name()->name().starts_with("BatchNorm");
}

}  // namespace

struct QatModel::Impl {
  torch::jit::Module source;
  QatOptions options;
  std::vector<QatLayer> layers;
  OpenProgram open;
  QatPhase phase;
  bool all_frozen = true;

  Impl(const torch::jit::Module& program, const std::vector<Layer>& all, const std::vector<bool>& opened,
       const std::vector<bool>& folded, const QatOptions& chosen)
      : source(program), options(chosen), open(program, all, opened, folded) {}

  // What the user froze stays frozen; in a program that was exported without gradients all is trained.
  bool trains(const at::Tensor& parameter) const { return all_frozen || parameter.requires_grad(); }

  at::Tensor run(const at::Tensor& input) {
    return open.run(input, [this](size_t layer, const at::Tensor& x) { return layers[layer].run(x, phase); });
  }

  void set_training(bool on) {
    phase.training = on;
    open.program().train(on);
    for (const torch::jit::Module& module : open.program().modules()) {
      if (is_norm(module) && !phase.norm_is_live) torch::jit::Module(module).train(false);
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
      const at::Tensor y = layers[index].run(x, phase);
      check(index, y);
      return y;
    });
    return found;
  }
};

QatModel::QatModel(const torch::jit::Module& program, const std::vector<Layer>& all,
                   const std::vector<Followers>& followers, const StaticLayers& made,
                   const QatOptions& options) {
  std::vector<bool> opened, folds;
  std::vector<QatLayer> layers;
  for (size_t i = 0; i < all.size(); ++i) {
    layers.push_back(made[i] ? rounded_layer(all[i], followers[i].norm, *made[i], options)
                             : float_layer(all[i]));
    layers.back().opened = obstacle_to_open(all[i]).empty();
    opened.push_back(layers.back().opened);
    folds.push_back(layers.back().rounded);
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
    if (!layer.rounded) continue;
    if (layer.norm) {
      task.buffers.emplace_back(name + ".norm.mean", layer.norm->mean);
      task.buffers.emplace_back(name + ".norm.variance", layer.norm->variance);
    }
    if (layer.low.defined()) {
      task.buffers.emplace_back(name + ".low", layer.low);
      task.buffers.emplace_back(name + ".high", layer.high);
    }
    if (!impl_->trains(layer.layer.weight)) continue;
    add(name + ".weight", layer.weight, true);
    add(name + ".bias", layer.bias, false);
    add(name + ".weight_scale", layer.weight_scale, false);
    add(name + ".input_scale", layer.input_scale, false);
    if (layer.norm) {
      add(name + ".norm.weight", layer.norm->weight, false);
      add(name + ".norm.bias", layer.norm->bias, false);
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
    impl_->phase.norm_is_live = epoch < impl_->options.freeze_bn_after;
    impl_->phase.observing = epoch < impl_->options.freeze_observers_after;
    impl_->set_training(true);
  };
  task.forward = [this](const at::Tensor& inputs) { return impl_->run(inputs); };
  task.find_non_finite = [this](const at::Tensor& inputs) { return impl_->find_non_finite(inputs); };
  return task;
}

at::Tensor QatModel::evaluate(const at::Tensor& input) {
  const bool was_training = impl_->phase.training;
  if (was_training) impl_->set_training(false);
  const c10::InferenceMode guard;
  const at::Tensor output = impl_->run(input);
  if (was_training) impl_->set_training(true);
  return output;
}

StaticLayers QatModel::convert() {
  impl_->set_training(false);
  const at::NoGradGuard guard;
  StaticLayers made(impl_->layers.size());
  for (size_t i = 0; i < made.size(); ++i) {
    if (impl_->layers[i].rounded) made[i] = impl_->layers[i].convert();
  }
  return made;
}

const torch::jit::Module& QatModel::program() {
  impl_->set_training(false);
  impl_->source.eval();
  return impl_->source;
}

}  // namespace mcompress
