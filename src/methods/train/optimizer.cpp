#include "optimizer.h"

#include <cmath>

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

namespace mcompress {

struct Optimizer::Impl {
  std::vector<Trainable> parameters;
  OptimizerKind kind;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
};

Optimizer::Optimizer(const std::vector<Trainable>& parameters, const TrainOptions& options)
    : impl_(std::make_unique<Impl>()) {
  impl_->parameters = parameters;
  impl_->kind = options.optimizer;
  std::vector<at::Tensor> decaying, plain;
  for (const Trainable& parameter : parameters)
    (parameter.decays ? decaying : plain).push_back(parameter.value);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (const bool decays : {true, false}) {
    const auto& tensors = decays ? decaying : plain;
    if (tensors.empty()) continue;
    const double decay = decays ? options.weight_decay : 0;
    std::unique_ptr<torch::optim::OptimizerOptions> settings;
    if (impl_->kind == OptimizerKind::kSgd) {
      settings = std::make_unique<torch::optim::SGDOptions>(
          torch::optim::SGDOptions(options.rate).momentum(options.momentum).weight_decay(decay));
    } else {
      settings = std::make_unique<torch::optim::AdamWOptions>(
          torch::optim::AdamWOptions(options.rate).weight_decay(decay));
    }
    groups.emplace_back(tensors, std::move(settings));
  }
  if (impl_->kind == OptimizerKind::kSgd) {
    impl_->optimizer = std::make_unique<torch::optim::SGD>(groups, torch::optim::SGDOptions(options.rate));
  } else {
    impl_->optimizer =
        std::make_unique<torch::optim::AdamW>(groups, torch::optim::AdamWOptions(options.rate));
  }
}

Optimizer::~Optimizer() = default;

void Optimizer::step(double rate) {
  for (auto& group : impl_->optimizer->param_groups()) group.options().set_lr(rate);
  impl_->optimizer->step();
}

void Optimizer::clear_gradients() { impl_->optimizer->zero_grad(); }

void Optimizer::clip(double limit) {
  double squares = 0;
  for (const Trainable& parameter : impl_->parameters) {
    if (parameter.value.grad().defined()) squares += fixed_sum(parameter.value.grad().square());
  }
  const double norm = std::sqrt(squares);
  if (!(norm > limit)) return;
  for (const Trainable& parameter : impl_->parameters) {
    if (parameter.value.grad().defined()) parameter.value.grad().mul_(limit / norm);
  }
}

std::map<std::string, at::Tensor> Optimizer::state() const {
  std::map<std::string, at::Tensor> result;
  const auto& states = impl_->optimizer->state();
  for (const Trainable& parameter : impl_->parameters) {
    const auto found = states.find(parameter.value.unsafeGetTensorImpl());
    if (found == states.end()) continue;
    if (const auto* sgd = dynamic_cast<const torch::optim::SGDParamState*>(found->second.get())) {
      if (sgd->momentum_buffer().defined()) result["momentum/" + parameter.name] = sgd->momentum_buffer();
    } else if (const auto* adam = dynamic_cast<const torch::optim::AdamWParamState*>(found->second.get())) {
      result["steps/" + parameter.name] = at::full({1}, adam->step(), at::kLong);
      result["mean/" + parameter.name] = adam->exp_avg();
      result["square/" + parameter.name] = adam->exp_avg_sq();
    }
  }
  return result;
}

void Optimizer::set_state(const std::map<std::string, at::Tensor>& state) {
  auto& states = impl_->optimizer->state();
  const auto value_of = [&](const std::string& kind, const Trainable& parameter) {
    const auto found = state.find(kind + "/" + parameter.name);
    return found == state.end() ? at::Tensor() : found->second.view_as(parameter.value).clone();
  };
  for (const Trainable& parameter : impl_->parameters) {
    auto* key = parameter.value.unsafeGetTensorImpl();
    if (impl_->kind == OptimizerKind::kSgd) {
      const at::Tensor momentum = value_of("momentum", parameter);
      if (!momentum.defined()) continue;
      auto made = std::make_unique<torch::optim::SGDParamState>();
      made->momentum_buffer(momentum);
      states[key] = std::move(made);
    } else {
      const auto steps = state.find("steps/" + parameter.name);
      if (steps == state.end()) continue;
      auto made = std::make_unique<torch::optim::AdamWParamState>();
      made->step(steps->second.item<int64_t>());
      made->exp_avg(value_of("mean", parameter));
      made->exp_avg_sq(value_of("square", parameter));
      states[key] = std::move(made);
    }
  }
}

double fixed_sum(const at::Tensor& values) {
  // Rows below the size from which LibTorch splits a sum over threads.
  constexpr int64_t kRow = 8192;
  const at::Tensor flat = values.detach().flatten();
  double sum = 0;
  for (int64_t begin = 0; begin < flat.numel(); begin += kRow)
    sum += flat.slice(0, begin, std::min(begin + kRow, flat.numel())).sum(at::kDouble).item<double>();
  return sum;
}

double rate_at(const TrainOptions& options, int64_t step, int64_t steps) {
  const double warm = step < options.warmup_steps
                          ? static_cast<double>(step + 1) / static_cast<double>(options.warmup_steps)
                          : 1.0;
  const auto total = static_cast<double>(options.epochs * steps);
  switch (options.schedule) {
    case Schedule::kConstant: return options.rate * warm;
    case Schedule::kCosine:
      return options.rate * warm * 0.5 * (1 + std::cos(M_PI * static_cast<double>(step) / total));
    case Schedule::kStep:
      return options.rate * warm *
             std::pow(options.step_factor, static_cast<double>(step / steps / options.step_epochs));
  }
  return options.rate;
}

}  // namespace mcompress
