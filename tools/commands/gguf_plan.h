#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mcompress/model/checkpoint.h"
#include "mcompress/model/gguf_export.h"
#include "mcompress/model/packed_folder.h"

namespace mcompress::cli {

// The packed layers of a folder, which may have none.
class PackedLayers {
 public:
  PackedLayers(const PackedLayers&) = delete;
  explicit PackedLayers(const std::string& folder)
      : checkpoint_(read_checkpoint(folder, ModelFormat::kHuggingFace)) {
    const FolderQuantization quantization = read_quantization(folder);
    rounds_inputs_ = quantization.rounds_inputs;
    if (!quantization.text.empty())
      reader_.emplace(checkpoint_, quantization.form.value_or(PackedForm::kPlainCodes));
  }

  const CheckpointFiles& checkpoint() const { return checkpoint_; }
  bool rounds_inputs() const { return rounds_inputs_; }
  bool contains(const GgufPlace& place) const {
    return reader_ && place.source.ends_with(".weight") && reader_->layers().contains(layer_of(place));
  }
  IntGroup read(const GgufPlace& place) const { return reader_->read(layer_of(place)); }

 private:
  static std::string layer_of(const GgufPlace& place) {
    return place.source.substr(0, place.source.rfind('.'));
  }

  CheckpointFiles checkpoint_;
  std::optional<PackedReader> reader_;
  bool rounds_inputs_ = false;
};

// How a tensor is written: as codes with the scales that it has, or as values.
struct Planned {
  GgufType type = GgufType::kF32;
  bool keeps_codes = false;
  std::string reason = {};
};

// How each tensor is written where `wanted` is the type of matrices. Q8_0 in place of the type is for some of
// the packed layers. Throws Error(2) where their codes would be lost and that is not asked for.
std::vector<Planned> plan_types(const std::vector<GgufPlace>& places, const PackedLayers& packed,
                                GgufType wanted, bool tied, bool allow_requantize);

}  // namespace mcompress::cli
