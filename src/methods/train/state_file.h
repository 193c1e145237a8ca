#pragma once

#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/trainer.h"

namespace mcompress {

// The state of a training run on disk: tensors as flat arrays, and short texts.
struct TrainState {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> texts;
};

void write_state(const TrainState& state, const std::string& path);
// Throws Error(65) where the file is not what write_state() writes.
TrainState read_state(const std::string& path);

// The epochs so far as a text of the state, a line each.
std::string to_text(const std::vector<EpochRecord>& epochs);
std::vector<EpochRecord> epochs_of(const std::string& text);

}  // namespace mcompress
