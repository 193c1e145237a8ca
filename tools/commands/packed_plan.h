#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "compress_steps.h"
#include "group_options.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/decoder.h"
#include "mcompress/model/packed_folder.h"

namespace mcompress::cli {

constexpr const char* kTiedWarning =
    "where this model's output layer is its embedding, readers do not find it in a quantized one: leave out "
    "--embeddings then";

// A checkpoint and what becomes of its layers.
struct PackedPlan {
  std::vector<GroupedLayer> layers;
  std::vector<Decision> decisions;  // the same, then what is none to round
  std::map<std::string, GroupGrid> grids;
};

// The configuration of a language model that can be run; none of other models, and `why`.
std::optional<DecoderConfig> language_config(const std::string& model, std::string* why = nullptr);

// Of a language model. Throws Error(2) as choose_grids() does, for --lm-head of a head that is the embedding,
// and for what the format has no place for; Error(65) where no layer is left.
PackedPlan plan_language(const DecoderConfig& config, const CheckpointFiles& checkpoint,
                         const CompressOptions& options, const GroupOptions& groups);
// Of any other model: its matrices are linear layers but for those that are named like embeddings.
PackedPlan plan_matrices(const CheckpointFiles& checkpoint, const CompressOptions& options,
                         const GroupOptions& groups);

// A layer as it is packed.
PackedLayer packed_layer(const GroupedLayer& layer, const GroupGrid& grid);

// What is written. `config`: of a language model.
PackedFolder folder_of(const PackedPlan& plan, const DecoderConfig* config, const GroupOptions& groups);
// Fills in what follows from the layers of a folder, and from their names: the usual grid, the head, parts.
void finish_folder(const DecoderConfig* config, PackedFolder& folder);

// Gives a head that is stored beside the embedding, which it is tied to, the same new values.
void edit_tied_head(const CheckpointFiles& checkpoint, const DecoderConfig& config,
                    std::map<size_t, EditRows>& edits);

// Throws Error(65) for what would stop the run late: weights that are not finite, and values that the format,
// whose readers compute in float16, has no number for.
void check_values(const CheckpointFiles& checkpoint, const PackedPlan& plan, const GroupOptions& groups);

// The line of a decision in the report, with the bytes that its layer takes, which are counted.
LayerRecord record_of(const Decision& decision, const PackedPlan& plan, const GroupOptions& groups,
                      Calibration& calibration);

}  // namespace mcompress::cli
