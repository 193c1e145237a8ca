#pragma once

#include <cstdint>
#include <string>

#include "compress_steps.h"
#include "mcompress/model/decoder.h"

namespace mcompress::cli {

// What a model is run on before its weights are rounded.
struct CalibrationOptions {
  std::string calib_data, calib_layout = "file", calib_compute = "auto";
  int64_t nsamples = 128, seqlen = 512;
};
void add_calibration_options(CLI::App& app, CalibrationOptions& options, const std::string& group);

// The types in which products of the calibration run are computed and its states are held.
struct CalibrationTypes {
  DecoderCompute compute;
  at::ScalarType states;
};
CalibrationTypes calibration_types(const CalibrationOptions& options);

// Windows of --calib-data, which the report tells of; undefined where there is none. Throws Error(65) for
// text that is one token again and again.
at::Tensor read_calibration_text(const CompressOptions& options, const CalibrationOptions& calibration,
                                 const DecoderConfig& config, const RunOptions& run, Report& report);

// A hash of the file; random tokens are told by the seed, which is a setting.
std::string hash_of_text(const std::string& path);

}  // namespace mcompress::cli
