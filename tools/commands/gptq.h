#pragma once

#include <cstdint>

#include "calibration_text.h"
#include "compress_steps.h"
#include "group_options.h"
#include "mcompress/methods/gptq.h"

namespace mcompress::cli {

// The settings of one `mcompress gptq`.
struct GptqCommand : CompressOptions, GroupOptions, CalibrationOptions {
  int64_t sweeps = 4;
  bool act_order = true, static_groups = true, true_sequential = true, resume = false;
  double damping = 0.01;
};

void gptq_program(const GptqCommand& options, const RunOptions& run, Report& report);

GptqOptions method_options(const GptqCommand& options);

}  // namespace mcompress::cli
