#pragma once

#include <map>
#include <string>

#include <ATen/core/Tensor.h>

namespace mcompress {

// The state of a training run on disk: tensors as flat arrays, and short texts.
struct TrainState {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> texts;
};

void write_state(const TrainState& state, const std::string& path);
// Throws Error(65) where the file is not what write_state() writes.
TrainState read_state(const std::string& path);

}  // namespace mcompress
