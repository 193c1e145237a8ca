#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mcompress/methods/trainer.h"

namespace mcompress {

// torch::optim behind a face that stores its state as named tensors.
class Optimizer {
 public:
  Optimizer(const std::vector<Trainable>& parameters, const TrainOptions& options);
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  void step(double rate);
  void clear_gradients();
  void clip(double limit);  // scales all gradients down where their norm is above `limit`

  std::map<std::string, at::Tensor> state() const;  // "momentum/fc1.weight"
  void set_state(const std::map<std::string, at::Tensor>& state);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The sum over all elements in an order that the number of threads does not change.
double fixed_sum(const at::Tensor& values);

}  // namespace mcompress
