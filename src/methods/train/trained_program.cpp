#include "mcompress/methods/trained_program.h"

#include <limits>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>

#include "mcompress/base/error.h"
#include "qat_layer.h"

namespace mcompress {

namespace {

bool is_norm(const torch::jit::Module& module) {
  return module.type()->name()->name().starts_with("BatchNorm");
}

std::vector<bool> marked(const std::vector<QatLayer>& layers, bool QatLayer::*mark) {
  std::vector<bool> marks;
  for (const QatLayer& layer : layers) marks.push_back(layer.*mark);
  return marks;
}

// Weights that pruning left at zero; undefined where there are none, or nothing else.
at::Tensor zeros_of(const at::Tensor& weight) {
  at::Tensor zeros = weight.detach() == 0;
  const int64_t count = zeros.sum().item<int64_t>();
  return count == 0 || count == weight.numel() ? at::Tensor() : zeros;
}

}  // namespace

struct TrainedProgram::Impl {
  torch::jit::Module source;
  QatOptions options;
  std::vector<QatLayer> layers;
  OpenProgram open;
  QatPhase phase;
  bool all_frozen = true;
  std::map<size_t, size_t> observed_as;  // place of a layer's or module's output among those that are kept
  std::vector<at::Tensor> observed;

  // `seen` is `program`, or a copy whose modules are observed.
  Impl(const torch::jit::Module& program, const torch::jit::Module& seen, const std::vector<Layer>& all,
       std::vector<QatLayer> made, const QatOptions& chosen)
      : source(program),
        options(chosen),
        layers(std::move(made)),
        open(seen, all, marked(layers, &QatLayer::opened), marked(layers, &QatLayer::rounded)) {
    for (const at::Tensor& parameter : program.parameters())
      all_frozen = all_frozen && !parameter.requires_grad();
    set_training(false);
  }

  // What the user froze stays frozen; in a program that was exported without gradients all is trained.
  bool trains(const at::Tensor& parameter) const { return all_frozen || parameter.requires_grad(); }

  at::Tensor run(const at::Tensor& input) {
    std::fill(observed.begin(), observed.end(), at::Tensor());
    return open.run(input, [this](size_t layer, const at::Tensor& x) {
      const at::Tensor y = layer < layers.size() ? layers[layer].run(x, phase) : x;
      const auto place = observed_as.find(layer);
      if (place == observed_as.end()) return y;
      at::Tensor& kept = observed[place->second];
      if (kept.defined()) throw bad_data("a module of a hint is used more than once in a forward pass");
      kept = y;
      return y.clone();  // what follows may change it in place
    });
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
      if (index >= layers.size()) return x;
      check(index, layers[index].weight);
      const at::Tensor y = layers[index].run(x, phase);
      check(index, y);
      return y;
    });
    return found;
  }
};

TrainedProgram::TrainedProgram(const torch::jit::Module& program, const std::vector<Layer>& all,
                               const std::vector<std::string>& observed) {
  std::vector<QatLayer> layers;
  std::map<std::string, size_t> opened;
  for (const Layer& layer : all) {
    layers.push_back(float_layer(layer));
    if (layers.back().opened) opened[layer.name] = layers.size() - 1;
  }
  std::map<size_t, size_t> observed_as;
  std::vector<std::string> modules;
  for (size_t i = 0; i < observed.size(); ++i) {
    const auto layer = opened.find(observed[i]);
    observed_as[layer == opened.end() ? all.size() + modules.size() : layer->second] = i;
    if (layer == opened.end()) modules.push_back(observed[i]);
  }
  QatOptions options;
  options.freeze_bn_after = std::numeric_limits<int64_t>::max();
  impl_ = std::make_unique<Impl>(program, observe_outputs(program, modules, all.size()), all,
                                 std::move(layers), options);
  impl_->observed_as = std::move(observed_as);
  impl_->observed.resize(observed.size());
}

TrainedProgram::TrainedProgram(const torch::jit::Module& program, const std::vector<Layer>& all,
                               const std::vector<Followers>& followers, const StaticLayers& made,
                               const QatOptions& options) {
  std::vector<QatLayer> layers;
  for (size_t i = 0; i < all.size(); ++i) {
    layers.push_back(made[i] ? rounded_layer(all[i], followers[i].norm, *made[i], options)
                             : float_layer(all[i]));
  }
  impl_ = std::make_unique<Impl>(program, program, all, std::move(layers), options);
}

TrainedProgram::~TrainedProgram() = default;
TrainedProgram::TrainedProgram(TrainedProgram&&) noexcept = default;

TrainTask TrainedProgram::task() {
  TrainTask task;
  std::set<const void*> seen;
  const auto add = [&](const std::string& name, at::Tensor value, bool decays, bool is_weight = false) {
    if (!value.defined() || value.scalar_type() != at::kFloat || !seen.insert(value.data_ptr()).second)
      return;
    value.requires_grad_(true);
    task.parameters.push_back({name, value, decays, is_weight ? zeros_of(value) : at::Tensor()});
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
    add(name + ".weight", layer.weight, true, true);
    add(name + ".bias", layer.bias, false);
    add(name + ".weight_scale", layer.weight_scale, false);
    add(name + ".input_scale", layer.input_scale, false);
    if (layer.norm) {
      add(name + ".norm.weight", layer.norm->weight, false);
      add(name + ".norm.bias", layer.norm->bias, false);
    }
  }
  for (const auto& parameter : impl_->open.program().named_parameters()) {
    const bool is_weight = parameter.value.dim() > 1;
    if (impl_->trains(parameter.value)) add(parameter.name, parameter.value, is_weight, is_weight);
  }
  for (const auto& layer : impl_->layers) {
    if (layer.rounded || !layer.opened || !impl_->trains(layer.weight)) continue;
    add(layer.layer.name + ".weight", layer.weight, true, true);
    add(layer.layer.name + ".bias", layer.bias, false);
  }
  for (const auto& buffer : impl_->open.program().named_buffers()) {
    const bool known = buffer.value.scalar_type() == at::kFloat || buffer.value.scalar_type() == at::kLong;
    if (known && at::has_internal_overlap(buffer.value) != at::MemOverlap::Yes)
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

at::Tensor TrainedProgram::evaluate(const at::Tensor& input) {
  const bool was_training = impl_->phase.training;
  if (was_training) impl_->set_training(false);
  const c10::InferenceMode guard;
  const at::Tensor output = impl_->run(input);
  if (was_training) impl_->set_training(true);
  return output;
}

const std::vector<at::Tensor>& TrainedProgram::observed() const { return impl_->observed; }

StaticLayers TrainedProgram::convert() {
  impl_->set_training(false);
  const at::NoGradGuard guard;
  StaticLayers made(impl_->layers.size());
  for (size_t i = 0; i < made.size(); ++i) {
    if (impl_->layers[i].rounded) made[i] = impl_->layers[i].convert();
  }
  return made;
}

const torch::jit::Module& TrainedProgram::program() {
  impl_->set_training(false);
  impl_->source.eval();
  return impl_->source;
}

}  // namespace mcompress
