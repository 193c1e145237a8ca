#pragma once

#include <map>
#include <string>

#include <ATen/core/Tensor.h>

namespace mcompress {

// What a run has done so far, on disk: tensors as flat arrays, and short texts.
struct RunState {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> texts;
};

void write_state(const RunState& state, const std::string& path);
// Throws Error(65) where the file is not what write_state() writes.
RunState read_state(const std::string& path);

}  // namespace mcompress
