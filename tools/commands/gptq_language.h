#pragma once

#include <map>
#include <string>
#include <vector>

#include "gptq.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/decoder.h"
#include "mcompress/model/gptq_folder.h"

namespace mcompress::cli {

// The model and what becomes of its layers.
struct LanguagePlan {
  std::vector<GroupedLayer> layers;
  std::vector<Decision> decisions;  // the same, then embedding and head
  std::map<std::string, GroupGrid> grids;
};

// Throws Error(2) as choose_grids() does and for --lm-head of a head that is the embedding, Error(65) where
// no layer is left.
LanguagePlan plan_language(const DecoderConfig& config, const CheckpointFiles& checkpoint,
                           const GptqCommand& options);

// A layer as GPTQ's format has it.
GptqLayer gptq_layer(const GroupedLayer& layer, const GroupGrid& grid);

// What is written in GPTQ's format, and what its readers make of that.
GptqFolder folder_of(const LanguagePlan& plan, const DecoderConfig& config, const GptqCommand& options);
void warn_of_readers(const LanguagePlan& plan, const GptqFolder& folder, const GptqCommand& options,
                     Report& report);

// Writes the layers that lie in the folder `state`, and reads them again before they take their place.
void write_output(const GptqCommand& options, const RunOptions& run, const CheckpointFiles& checkpoint,
                  const LanguagePlan& plan, const DecoderConfig& config, const std::string& state,
                  Report& report);

// A line for each decision; with what became of the layers where `state` is not empty.
void add_records(const LanguagePlan& plan, const GptqCommand& options, const DecoderConfig& config,
                 const std::string& state, Report& report);

}  // namespace mcompress::cli
