#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <torch/script.h>

#include "calibration_text.h"
#include "group_options.h"
#include "mcompress/methods/rounded_layer.h"
#include "mcompress/model/layer.h"

namespace mcompress::cli {

// A command that rounds the layers of a TorchScript program to few bits.
struct ProgramRun {
  const char* name;  // "gptq"
  const CompressOptions& options;
  const GroupOptions& groups;
  const CalibrationOptions& calibration;
  bool resume;
  // Rounds the layers that have a grid on one batch of inputs; undefined where no calibration data is given.
  std::function<RoundedProgram(const torch::jit::Module& program, const std::vector<Layer>& layers,
                               const std::map<std::string, GroupGrid>& grids, const at::Tensor& batch)>
      round;
};
void run_program(const ProgramRun& command, const RunOptions& run, Report& report);

}  // namespace mcompress::cli
