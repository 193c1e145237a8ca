#include "mcompress/base/error.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/packed_folder.h"
#include "packed_words.h"

namespace mcompress {

PackedReader::PackedReader(const CheckpointFiles& checkpoint, PackedForm form)
    : checkpoint_(checkpoint), form_(form) {
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) index_[checkpoint.arrays[i].name] = i;
  const std::vector<std::string>& suffixes = packed_suffixes(form);
  for (const Array& array : checkpoint.arrays) {
    if (!array.name.ends_with(suffixes[0])) continue;
    const std::string layer = array.name.substr(0, array.name.size() - suffixes[0].size());
    for (const std::string& suffix : suffixes) parts_.insert(layer + suffix);
    if (index_.contains(layer + ".weight"))
      throw bad_data("layer '{}' has both a '{}' and a '.weight'", layer, suffixes[0]);
    layers_[layer] = packed_sizes(form, tensors_of(layer), layer);
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
      const std::string layer = array.name.substr(0, array.name.size() - suffix.size());
      if (!index_.contains(layer + ".weight"))
        throw bad_data("layer '{}' has a '{}', and lacks '{}{}'", layer, suffix, layer, suffixes[0]);
    }
  }
}

std::optional<PackedForm> guess_form(const CheckpointFiles& checkpoint) {
  bool words = false, order = false;
  for (const Array& array : checkpoint.arrays) {
    if (array.name.ends_with(".weight_packed")) return PackedForm::kCompressedTensors;
    words = words || array.name.ends_with(".qweight");
    order = order || array.name.ends_with(".g_idx");
  }
  if (!words) return std::nullopt;
  return order ? PackedForm::kGptq : PackedForm::kAwq;
}

IntGroup PackedReader::read(const std::string& layer) const {
  if (const auto codes = index_.find(layer + ".weight"); codes != index_.end()) {
    const Array& array = checkpoint_.arrays[codes->second];
    const auto scale = index_.find(scale_name(array.name));
    if (array.shape.size() != 2 || array.bytes.empty() || scale == index_.end())
      throw bad_data("layer '{}': its 8-bit weight is no matrix, or lacks '{}'", layer,
                     scale_name(array.name));
    const Array& scales = checkpoint_.arrays[scale->second];
    return unpack_rows(rows_of(array, 0, array.shape[0]),
                       rows_of(scales, 0, scales.shape.empty() ? 1 : scales.shape[0]), layer);
  }
  return unpack_layer(form_, tensors_of(layer), layer);
}

PackedTensors PackedReader::tensors_of(const std::string& layer) const {
  PackedTensors tensors;
  for (const std::string& suffix : packed_suffixes(form_)) {
    const auto found = index_.find(layer + suffix);
    if (found == index_.end()) continue;
    const Array& array = checkpoint_.arrays[found->second];
    tensors[suffix] = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
  }
  return tensors;
}

}  // namespace mcompress
