#include <algorithm>

#include "mcompress/base/error.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/packed_folder.h"
#include "packed_words.h"

namespace mcompress {

PackedReader::PackedReader(const CheckpointFiles& checkpoint, PackedForm form)
    : checkpoint_(checkpoint), form_(form) {
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) index_[checkpoint.arrays[i].name] = i;
  const std::vector<std::string>& suffixes = packed_suffixes(form);
  const bool plain = form == PackedForm::kPlainCodes;
  for (const Array& array : checkpoint.arrays) {
    if (!array.name.ends_with(suffixes[0]) || (plain && array.dtype != DType::kI8)) continue;
    const std::string layer = array.name.substr(0, array.name.size() - suffixes[0].size());
    for (const std::string& suffix : suffixes) parts_.insert(layer + suffix);
    if (!plain && index_.contains(layer + ".weight"))
      throw bad_data("layer '{}' has both a '{}' and a '.weight'", layer, suffixes[0]);
    layers_[layer] = packed_sizes(form, tensors_of(layer, form), layer);
  }
  // Codes of 8 bits that are not packed, as of embeddings.
  for (const Array& array : checkpoint.arrays) {
    if (form != PackedForm::kCompressedTensors || array.dtype != DType::kI8 ||
        !array.name.ends_with(".weight"))
      continue;
    const std::string layer = array.name.substr(0, array.name.rfind('.'));
    const IntGroup codes = read(layer);
    parts_.insert({array.name, scale_name(array.name)});
    layers_[layer] = {codes.codes.size(0), codes.codes.size(1)};
  }
  // Whatever else is named like a part must have a layer.
  for (const Array& array : checkpoint.arrays) {
    for (const std::string& suffix : suffixes) {
      if (!array.name.ends_with(suffix) || parts_.contains(array.name)) continue;
      if (suffix == ".weight") continue;  // of a layer that stays as it is
      const std::string layer = array.name.substr(0, array.name.size() - suffix.size());
      if (plain || !index_.contains(layer + ".weight"))
        throw bad_data("layer '{}' has a '{}', and lacks {}'{}{}'", layer, suffix,
                       plain ? "codes in I8, " : "", layer, suffixes[0]);
    }
  }
}

namespace {

// One scale a row is of 8-bit weights too, whose inputs are rounded.
bool has_plain_groups(const CheckpointFiles& checkpoint) {
  std::map<std::string, const Array*> by_name;
  for (const Array& array : checkpoint.arrays) by_name[array.name] = &array;
  return std::any_of(checkpoint.arrays.begin(), checkpoint.arrays.end(), [&](const Array& array) {
    if (array.dtype != DType::kI8 || !array.name.ends_with(".weight")) return false;
    const auto scale = by_name.find(scale_name(array.name));
    const bool several =
        scale != by_name.end() && scale->second->shape.size() == 2 && scale->second->shape[1] > 1;
    return several || by_name.contains(array.name + "_zero_point");
  });
}

}  // namespace

std::optional<PackedForm> guess_form(const CheckpointFiles& checkpoint) {
  bool words = false, order = false;
  for (const Array& array : checkpoint.arrays) {
    if (array.name.ends_with(".weight_packed")) return PackedForm::kCompressedTensors;
    words = words || array.name.ends_with(".qweight");
    order = order || array.name.ends_with(".g_idx");
  }
  if (words) return order ? PackedForm::kGptq : PackedForm::kAwq;
  return has_plain_groups(checkpoint) ? std::optional(PackedForm::kPlainCodes) : std::nullopt;
}

IntGroup PackedReader::read(const std::string& layer) const {
  const PackedForm form = index_.contains(layer + ".weight") ? PackedForm::kPlainCodes : form_;
  return unpack_layer(form, tensors_of(layer, form), layer);
}

PackedTensors PackedReader::tensors_of(const std::string& layer, PackedForm form) const {
  PackedTensors tensors;
  for (const std::string& suffix : packed_suffixes(form)) {
    const auto found = index_.find(layer + suffix);
    if (found == index_.end()) continue;
    const Array& array = checkpoint_.arrays[found->second];
    tensors[suffix] = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
  }
  return tensors;
}

}  // namespace mcompress
