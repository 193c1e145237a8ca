#pragma once

#include <map>
#include <string>

#include "compress_steps.h"
#include "group_options.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/compress.h"
#include "mcompress/model/layer.h"
#include "models.h"
#include "teacher.h"
#include "train_options.h"

namespace mcompress::cli {

// The settings of one `mcompress quantize`.
struct QuantizeCommand : CompressOptions {
  std::string mode = "dynamic", dtype = "int8", runtime = "int8";
  bool per_tensor = false;
  std::string calib_data;
  int64_t nsamples = 512;
  bool only_if_faster = false;

  // Static mode and QAT.
  std::string observer = "histogram", weight_observer = "mse", activation_bits = "8";
  int64_t weight_bits = 8;
  double percentile = 99.99;
  bool bias_correction = false, sensitivity = false, tune = false;

  // QAT.
  TrainCommand training;
  TeacherCommand tutoring;
  bool learn_scales = false;
  int64_t freeze_bn_after = 0;
  std::optional<int64_t> freeze_observers_after;

  GroupOptions groups;  // weight-only mode
};

// The kinds of input and ways: programs, and weights without one.
void quantize_program(const QuantizeCommand& options, const RunOptions& run, Report& report);
void quantize_program_static(const QuantizeCommand& options, const RunOptions& run, Report& report);
void quantize_program_qat(const QuantizeCommand& options, const RunOptions& run, Report& report);
void quantize_checkpoint(const QuantizeCommand& options, ModelFormat format, const RunOptions& run,
                         Report& report);
void quantize_weights(const QuantizeCommand& options, const RunOptions& run, Report& report);
void quantize_program_weights(const QuantizeCommand& options, const RunOptions& run, Report& report);
void quantize_by_importance(const QuantizeCommand& options, const RunOptions& run, Report& report);

// Why dynamic mode leaves a kind of layer alone; empty where it does not.
std::string obstacle_of(LayerKind kind, const QuantizeCommand& options);

// Steps of quantizing a program.
Runtime runtime_named(const std::string& name);
// Adds the weights of the program that are no layer's to the report.
void add_other_weights(const torch::jit::Module& program, const std::vector<Layer>& layers, Report& report);
// The layer's line in the report, once it is compressed or kept.
LayerRecord record_of(const Decision& decision, const std::string& action, const CompressedWeight* weight,
                      const std::optional<QuantizationError>& lost);
// Why a layer that takes `integer` seconds is left in float, which takes `exact`; empty where it is faster.
std::string slower_than_float(const LayerTiming& timing);
// Times a layer in both forms on an input that it was given.
LayerTiming time_layer(const Forward& exact, const Forward& integer, const at::Tensor& input);
// The module at a path such as "encoder.fc1" as it computes once the file is loaded.
Forward packed_forward(const torch::jit::Module& program, const std::string& path);
// Writes the quantized program, opens it again, measures both, and ends the run; `weights` are the new ones.
void write_quantized(const QuantizeCommand& options, const RunOptions& run, const torch::jit::Module& program,
                     const torch::jit::Module& quantized, const std::vector<Layer>& layers,
                     const std::map<std::string, CompressedWeight>& weights, const Dataset* data,
                     BackgroundHash& hash, Report& report);

}  // namespace mcompress::cli
