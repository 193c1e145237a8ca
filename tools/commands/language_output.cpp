#include <ATen/ATen.h>

#include "language_run.h"
#include "mcompress/model/checkpoint.h"
#include "packed_run.h"

namespace mcompress::cli {

namespace {

// The layers of blocks as they lie in the checkpoint of a run, the last block that was asked for at hand; and
// the embedding.
class RoundedLayers {
 public:
  RoundedLayers(const RoundedModel& model, const DecoderConfig& config)
      : folder_(model.state), embedding_(model.embedding) {
    for (int64_t block = 0; block < config.blocks; ++block) {
      for (const auto& stage : stages_of(config, block)) {
        for (const DecoderLayer& layer : stage) block_of_[layer.name] = block;
      }
    }
    block_of_[config.names.head] = config.blocks;
  }

  bool is_embedding(const std::string& layer) const { return embedding_ && embedding_->name == layer; }

  const IntGroup& operator[](const std::string& layer) {
    if (is_embedding(layer)) return embedding_->weight;
    const int64_t block = block_of_.at(layer);
    if (block != held_) {
      layers_.clear();
      RoundedBlock rounded = read_rounded_block(folder_, block);
      for (RoundedLayer& read : rounded.layers) layers_[read.name] = std::move(read.weight);
      held_ = block;
    }
    return layers_.at(layer);
  }

 private:
  std::string folder_;
  const std::optional<RoundedLayer>& embedding_;
  std::map<std::string, int64_t> block_of_;
  int64_t held_ = -1;
  std::map<std::string, IntGroup> layers_;
};

// The values that the codes stand for, in the type in which the array was stored.
std::map<size_t, EditRows> dense_edits(const CheckpointFiles& checkpoint, const PackedPlan& plan,
                                       const DecoderConfig& config, const PackedFolder& folder,
                                       RoundedLayers& rounded) {
  std::map<size_t, EditRows> edits;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const std::string& name = checkpoint.arrays[i].name;
    if (const auto changed = folder.changed.find(name); changed != folder.changed.end()) {
      edits[i] = [values = changed->second](const at::Tensor& rows, int64_t begin, int64_t end) {
        return values.slice(0, begin, end).to(rows.scalar_type());
      };
    }
    if (!name.ends_with(".weight")) continue;
    const std::string layer = name.substr(0, name.rfind('.'));
    if (!plan.grids.contains(layer)) continue;
    const bool transposed = config.transposed && layer != config.names.head && !rounded.is_embedding(layer);
    edits[i] = [layer, transposed, &rounded](const at::Tensor& rows, int64_t begin, int64_t end) {
      const IntGroup& weight = rounded[layer];
      const at::Tensor values =
          transposed ? dequantize_rows(weight, 0, weight.codes.size(0)).slice(1, begin, end).t()
                     : dequantize_rows(weight, begin, end);
      return values.to(rows.scalar_type());
    };
  }
  edit_tied_head(checkpoint, config, edits);
  return edits;
}

}  // namespace

void write_output(const LanguageRun& command, const RunOptions& run, const CheckpointFiles& checkpoint,
                  const PackedPlan& plan, const DecoderConfig& config, PackedFolder& folder,
                  const RoundedModel& made, Report& report) {
  const std::string& model = command.options.model;
  RoundedLayers rounded(made, config);
  for (int64_t block = 0; block < config.blocks; ++block) {
    const RoundedBlock read = read_rounded_block(made.state, block);
    for (const auto& [name, values] : read.changed) folder.changed[name] = values;
    report.folds.insert(report.folds.end(), read.folds.begin(), read.folds.end());
  }
  OutputFolder output(command.options.output, run.force);
  if (folder.form) {
    const auto give = [&](const TakeLayer& take) {
      for (const PackedLayer& layer : folder.layers) take(layer.name, rounded[layer.name]);
    };
    write_checked_folder(checkpoint, model, folder, give, output, report);
  } else {
    timed(report, "write", [&] {
      write_edited_folder(checkpoint, model, dense_edits(checkpoint, plan, config, folder, rounded), output);
    });
  }
  reopen(report, [&] { return Decoder(output.temporary(), at::kFloat); });
  output.commit();
}

void add_records(const LanguageRun& command, const PackedPlan& plan, const DecoderConfig& config,
                 const std::optional<RoundedModel>& made, Report& report) {
  std::map<std::string, RoundedLayer> done;
  if (made) {
    const bool head = plan.grids.contains(config.names.head);
    for (int64_t block = 0; block < config.blocks + (head ? 1 : 0); ++block) {
      RoundedBlock rounded = read_rounded_block(made->state, block);
      for (RoundedLayer& layer : rounded.layers) {
        layer.weight = {layer.weight.bits, {}, {}, {}, {}};  // a whole model's weights are not held
        done[layer.name] = std::move(layer);
      }
    }
  }
  for (const Decision& decision : plan.decisions) {
    LayerRecord record = record_of(decision, plan, command.groups, *report.calibration);
    if (const auto found = done.find(decision.name); found != done.end()) {
      const RoundedLayer& rounded = found->second;
      record.sqnr_db = rounded.sqnr_db;
      record.max_error = rounded.max_error;
      record.rounding = rounding_of(rounded, plan.grids.at(decision.name).group_size);
    } else if (made && made->embedding && made->embedding->name == decision.name) {
      record.sqnr_db = made->embedding->sqnr_db;
      record.max_error = made->embedding->max_error;
    }
    report.layers.push_back(std::move(record));
  }
}

GroupRounding rounding_of(const RoundedLayer& layer, int64_t group_size) {
  return {layer.weight.bits, group_size,          layer.loss,    layer.rounded_loss,
          layer.damping,     layer.dead_channels, layer.rounded, layer.seconds};
}

}  // namespace mcompress::cli
