#include "mcompress/methods/trainer.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "../state_file.h"
#include "epoch_text.h"
#include "mcompress/base/clock.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/progress.h"
#include "optimizer.h"

namespace mcompress {

namespace {

// A seed of its own for each use and step, so that a run needs no generator's state to go on.
uint64_t mix(uint64_t seed, uint64_t use, int64_t step) {
  uint64_t value = seed ^ (use << 56U) ^ static_cast<uint64_t>(step);  // splitmix64
  value += 0x9E3779B97F4A7C15U;
  value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27U)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31U);
}
enum Use : uint64_t { kShuffle = 1, kAugment, kModel };

void check_parameters(const TrainTask& task) {
  if (task.parameters.empty())
    throw bad_data("the model has no parameters that can be trained: float32 tensors that it computes with");
}

void check_scores(const at::Tensor& scores, int64_t rows) {
  if (!scores.requires_grad())
    throw bad_data("the model's output does not depend on parameters that can be trained");
  if (scores.dim() != 2 || scores.size(0) != rows)
    throw bad_data("the model's output is not [batch, classes], so it cannot be trained");
}

class Trainer {
 public:
  Trainer(TrainTask& task, const Dataset& data, const TrainOptions& options,
          const CheckpointOptions& checkpoint)
      : task_(task),
        data_(data),
        options_(options),
        checkpoint_(checkpoint),
        optimizer_(task.parameters, options),
        batch_size_(std::min(options.batch_size, data.size())),
        steps_(data.size() / batch_size_) {}

  TrainResult run() {
    check_parameters(task_);
    if (data_.labels.defined() && data_.labels.min().item<int64_t>() < 0)
      throw bad_data("the training data has negative labels");
    if (checkpoint_.resume && std::filesystem::exists(checkpoint_.path)) restore();
    try {
      if (task_.score && result_.epochs.empty() && global_step() == 0)
        keep_if_better({0, NAN, 0, task_.score(), 0});
      while (epoch_ < options_.epochs && result_.stopped.empty()) run_epoch();
    } catch (const Interrupted& stop) {
      accept_interrupt();
      save();
      throw error(
          Exit::kResumable,
          "stopped by signal {} in epoch {} of {}, after step {} of {}; the same command with --resume "
          "goes on from '{}'",
          stop.signal, epoch_ + 1, options_.epochs, step_, steps_, checkpoint_.path);
    }
    if (task_.score) put(best_);
    result_.steps = global_step();
    return result_;
  }

 private:
  int64_t global_step() const { return epoch_ * steps_ + step_; }

  void run_epoch() {
    const auto start = Clock::now();
    const double before = seconds_;
    if (task_.begin_epoch) task_.begin_epoch(epoch_);
    const at::Tensor order = shuffled(data_.size(), mix(options_.seed, kShuffle, epoch_));
    Progress progress(fmt::format("{}{}train epoch {} of {}", options_.label,
                                  options_.label.empty() ? "" : ": ", epoch_ + 1, options_.epochs),
                      steps_);
    if (step_ > 0) progress.step(step_);
    while (step_ < steps_) {
      train_step(order.slice(0, step_ * batch_size_, (step_ + 1) * batch_size_));
      ++step_;
      seconds_ = before + seconds_since(start);
      progress.note(fmt::format("loss {:.4f}, rate {:.3g}", loss_sum_ / static_cast<double>(step_), rate_));
      progress.step();
      constexpr double kSaveEvery = 60;
      if (seconds_since(saved_) > kSaveEvery) save();
    }
    finish_epoch();
    if (result_.epochs.back().score)
      progress.note(
          fmt::format("loss {:.4f}, score {:.4f}", result_.epochs.back().loss, *result_.epochs.back().score));
  }

  TrainBatch batch_of(const at::Tensor& samples, int64_t step) const {
    at::Tensor raw = data_.raw(samples);
    const AugmentOptions& changes = options_.augment;
    if (changes.flip || changes.crop > 0) raw = augment(raw, changes, mix(options_.seed, kAugment, step));
    return {data_.places.defined() ? data_.places.index_select(0, samples) : samples, data_.prepare(raw),
            data_.labels.defined() ? data_.labels.index_select(0, samples) : at::Tensor()};
  }

  void train_step(const at::Tensor& samples) {
    const int64_t step = global_step();
    if (task_.begin_step) task_.begin_step(step, options_.epochs * steps_);
    const TrainBatch batch = batch_of(samples, step);
    at::manual_seed(mix(options_.seed, kModel, step));  // for dropout
    optimizer_.clear_gradients();
    const at::Tensor scores = task_.forward(batch.inputs);
    check_scores(scores, samples.size(0));
    if (step == 0 && !task_.loss) check_labels(scores.size(1));  // of all rows, before the long work
    const at::Tensor loss = task_.loss ? task_.loss(scores, batch)
                                       : cross_entropy(scores, batch.labels, options_.label_smoothing);
    const double value = loss.item<double>();
    if (!std::isfinite(value)) diverged(step, batch.inputs);
    try {
      loss.backward();
    } catch (const c10::Error& failure) {
      throw bad_data("the model cannot be trained: {}", failure.what_without_backtrace());
    }
    keep_zeros(true);
    if (options_.clip_norm > 0) optimizer_.clip(options_.clip_norm);
    rate_ = rate_at(options_, step, steps_);
    optimizer_.step(rate_);
    keep_zeros(false);
    loss_sum_ += value;
  }

  void check_labels(int64_t classes) {
    if (data_.labels.max().item<int64_t>() >= classes)
      throw bad_data("the training data has labels outside the model's {} classes", classes);
  }

  // Of the gradients, or of what the optimizer made of the values.
  void keep_zeros(bool of_gradients) {
    const at::NoGradGuard guard;
    for (const Trainable& parameter : task_.parameters) {
      const at::Tensor& values = of_gradients ? parameter.value.grad() : parameter.value;
      if (parameter.zeros.defined() && values.defined()) values.masked_fill_(parameter.zeros, 0);
    }
  }

  [[noreturn]] void diverged(int64_t step, const at::Tensor& inputs) {
    const std::string layer = task_.find_non_finite ? task_.find_non_finite(inputs) : "";
    throw bad_data(
        "training diverged: the loss is not finite at step {} (epoch {}){}; lower --lr, which is {:.3g}, or "
        "set --clip-norm",
        step + 1, epoch_ + 1, layer.empty() ? "" : fmt::format(", first in layer '{}'", layer),
        options_.rate);
  }

  // A score after training that cannot be taken, where one before it could, is a divergence.
  double score_of_epoch() {
    try {
      return task_.score();
    } catch (const Error& failure) {
      if (failure.code() != Exit::kBadData) throw;
      throw bad_data("training diverged in epoch {}: {}; lower --lr, which is {:.3g}, or set --clip-norm",
                     epoch_ + 1, failure.what(), options_.rate);
    }
  }

  void finish_epoch() {
    EpochRecord record{epoch_ + 1, loss_sum_ / static_cast<double>(steps_), rate_, {}, seconds_};
    if (task_.score) {
      record.score = score_of_epoch();
      keep_if_better(record);
    } else {
      result_.best_epoch = record.epoch;
      result_.epochs.push_back(record);
    }
    ++epoch_;
    step_ = 0;
    loss_sum_ = seconds_ = 0;
    const int64_t since = std::max(result_.best_epoch, task_.best_from);
    if (options_.patience > 0 && record.epoch - since >= options_.patience)
      result_.stopped = fmt::format("no better score in {} epochs", options_.patience);
    save();
  }

  // Of equal scores the first epoch is kept; epoch 0 is the state before training.
  void keep_if_better(const EpochRecord& record) {
    if (record.epoch >= task_.best_from && (best_.empty() || *record.score > best_score_)) {
      best_score_ = *record.score;
      result_.best_epoch = record.epoch;
      best_ = copies();
    }
    result_.epochs.push_back(record);
  }

  std::map<std::string, at::Tensor> tensors() const {
    std::map<std::string, at::Tensor> all;
    for (const Trainable& parameter : task_.parameters)
      all["parameter/" + parameter.name] = parameter.value.detach();
    for (const Trainable& parameter : task_.parameters) {
      if (parameter.zeros.defined()) all["zeros/" + parameter.name] = parameter.zeros;
    }
    for (const auto& [name, buffer] : task_.buffers) all["buffer/" + name] = buffer.detach();
    return all;
  }

  std::map<std::string, at::Tensor> copies() const {
    auto all = tensors();
    for (auto& [name, tensor] : all) tensor = tensor.clone();
    return all;
  }

  void put(const std::map<std::string, at::Tensor>& values) {
    for (auto& [name, tensor] : tensors()) {
      const auto found = values.find(name);
      if (found == values.end() || found->second.numel() != tensor.numel())
        throw bad_data("'{}' is not the checkpoint of this model: '{}' does not fit", checkpoint_.path, name);
      tensor.copy_(found->second.view_as(tensor));
    }
  }

  void save() {
    RunState state;
    for (const auto& [name, tensor] : tensors()) state.tensors["now/" + name] = tensor;
    for (const auto& [name, tensor] : best_) state.tensors["best/" + name] = tensor;
    for (const auto& [name, tensor] : optimizer_.state()) state.tensors["optimizer/" + name] = tensor;
    state.texts = {{"fingerprint", checkpoint_.fingerprint},
                   {"epoch", fmt::format("{}", epoch_)},
                   {"step", fmt::format("{}", step_)},
                   {"loss_sum", fmt::format("{:.17g}", loss_sum_)},
                   {"seconds", fmt::format("{:.17g}", seconds_)},
                   {"best_epoch", fmt::format("{}", result_.best_epoch)},
                   {"best_score", fmt::format("{:.17g}", best_score_)},
                   {"stopped", result_.stopped},
                   {"epochs", to_text(result_.epochs)}};
    write_state(state, checkpoint_.path);
    saved_ = Clock::now();
  }

  static std::map<std::string, at::Tensor> below(const std::map<std::string, at::Tensor>& all,
                                                 const std::string& prefix) {
    std::map<std::string, at::Tensor> result;
    for (const auto& [name, tensor] : all) {
      if (name.starts_with(prefix)) result[name.substr(prefix.size())] = tensor;
    }
    return result;
  }

  void restore() {
    const RunState state = read_state(checkpoint_.path);
    const auto text = [&](const char* name) {
      const auto found = state.texts.find(name);
      if (found == state.texts.end())
        throw bad_data("'{}' is no checkpoint of a training run: it lacks '{}'", checkpoint_.path, name);
      return found->second;
    };
    if (text("fingerprint") != checkpoint_.fingerprint) {
      throw error(
          Exit::kConfig,
          "checkpoint '{}' belongs to a run with another model, other data or other settings; repeat that "
          "command, or start anew without --resume and with --force",
          checkpoint_.path);
    }
    const auto number = [&](const char* name) { return std::strtoll(text(name).c_str(), nullptr, 10); };
    const auto real = [&](const char* name) { return std::strtod(text(name).c_str(), nullptr); };
    put(below(state.tensors, "now/"));
    best_ = below(state.tensors, "best/");
    optimizer_.set_state(below(state.tensors, "optimizer/"));
    epoch_ = number("epoch");
    step_ = number("step");
    loss_sum_ = real("loss_sum");
    seconds_ = real("seconds");
    result_.best_epoch = number("best_epoch");
    best_score_ = real("best_score");
    result_.stopped = text("stopped");
    result_.epochs = epochs_of(text("epochs"));
    if (step_ > 0) rate_ = rate_at(options_, global_step() - 1, steps_);
    result_.resumed_at = global_step();
  }

  TrainTask& task_;
  const Dataset& data_;
  const TrainOptions& options_;
  const CheckpointOptions& checkpoint_;
  Optimizer optimizer_;
  int64_t batch_size_, steps_;                    // rows of a batch, batches of an epoch
  int64_t epoch_ = 0, step_ = 0;                  // what comes next
  double loss_sum_ = 0, rate_ = 0, seconds_ = 0;  // of this epoch so far
  double best_score_ = 0;
  std::map<std::string, at::Tensor> best_;
  Clock::time_point saved_ = Clock::now();
  TrainResult result_;
};

}  // namespace

at::Tensor cross_entropy(const at::Tensor& scores, const at::Tensor& labels, double label_smoothing) {
  if (labels.max().item<int64_t>() >= scores.size(1))
    throw bad_data("the training data has labels outside the model's {} classes", scores.size(1));
  return at::cross_entropy_loss(scores, labels, {}, at::Reduction::Mean, -100, label_smoothing);
}

void check_trainable(const TrainTask& task, const at::Tensor& inputs) {
  check_parameters(task);
  const at::Tensor scores = task.forward(inputs);
  check_scores(scores, inputs.size(0));
  if (scores.isfinite().all().item<bool>()) return;
  const std::string layer = task.find_non_finite ? task.find_non_finite(inputs) : "";
  throw bad_data(
      "the model's outputs hold NaN or infinity{}; check the first rows of the data, and the model",
      layer.empty() ? "" : fmt::format(", first in layer '{}'", layer));
}

TrainResult train(TrainTask& task, const Dataset& data, const TrainOptions& options,
                  const CheckpointOptions& checkpoint) {
  return Trainer(task, data, options, checkpoint).run();
}

}  // namespace mcompress
