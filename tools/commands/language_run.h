#pragma once

#include <functional>
#include <optional>
#include <string>

#include "calibration_text.h"
#include "mcompress/methods/rounded_layer.h"
#include "mcompress/methods/run_checkpoint.h"
#include "packed_plan.h"

namespace mcompress::cli {

// A command that rounds the layers of a language model block after block.
struct LanguageRun {
  const char* name;  // "gptq"
  const CompressOptions& options;
  const GroupOptions& groups;
  const CalibrationOptions& calibration;
  bool resume;
  // Rounds the layers on windows of token ids into the checkpoint, and returns how many blocks that had
  // already.
  std::function<int64_t(const Decoder& model, const at::Tensor& ids,
                        const std::map<std::string, GroupGrid>& grids, at::ScalarType states,
                        const CheckpointOptions& checkpoint)>
      round;
  std::function<void(PackedFolder& folder)> describe;  // adds what the folder says of the method
};
void run_language(const LanguageRun& command, const RunOptions& run, Report& report);

// What a run made: the folder where the layers of blocks lie, and the embedding, rounded to nearest.
struct RoundedModel {
  std::string state;
  std::optional<RoundedLayer> embedding;
};

// Writes the layers, and reads them again before they take their place.
void write_output(const LanguageRun& command, const RunOptions& run, const CheckpointFiles& checkpoint,
                  const PackedPlan& plan, const DecoderConfig& config, PackedFolder& folder,
                  const RoundedModel& made, Report& report);

// A line for each decision; with what became of the layers where they are made.
void add_records(const LanguageRun& command, const PackedPlan& plan, const DecoderConfig& config,
                 const std::optional<RoundedModel>& made, Report& report);

// What the report says of a layer.
GroupRounding rounding_of(const RoundedLayer& layer, int64_t group_size);

}  // namespace mcompress::cli
