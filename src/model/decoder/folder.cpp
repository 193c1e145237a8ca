#include <optional>
#include <utility>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/packed_folder.h"
#include "source.h"

namespace mcompress {

namespace {

bool is_plain_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

class FolderSource : public WeightSource {
 public:
  FolderSource(const std::string& path, const DecoderConfig& config)
      : files_(read_checkpoint(path, ModelFormat::kHuggingFace)), rounds_inputs_(config.rounds_inputs) {
    for (size_t i = 0; i < files_.arrays.size(); ++i) index_[files_.arrays[i].name] = i;
    if (config.form) find_packed(config, path);
    for (const Array& array : files_.arrays) {
      if (packed_ && packed_->is_part(array.name)) continue;
      shapes_[array.name] = array.shape;
      // The head beside the embedding that it is tied to is read to compare them.
      if (is_known_extra(array.name, config) && array.name != config.names.head + ".weight") continue;
      const bool floating = is_plain_float(array.dtype);
      const bool coded = array.dtype == DType::kI8 && !config.quantization.empty();
      if (!floating && !coded)
        throw bad_data("'{}': tensor '{}' is {}; F32, F16 and BF16 can be computed with", path, array.name,
                       name_of(array.dtype));
      if (coded) check_scale(array, path);
    }
    for (const Array& array : files_.arrays) {
      if (array.dtype == DType::kI8) shapes_.erase(scale_name(array.name));
    }
  }

  // Codes in groups, or those of a layer that rounds its inputs, times the scale of their row.
  at::Tensor read(const std::string& name) const override {
    if (const auto place = places_.find(name); place != places_.end()) {
      const IntGroup weight = packed_->read(place->second.layer);
      const at::Tensor values = dequantize_rows(weight, 0, weight.codes.size(0));
      return place->second.transposed ? values.t() : values;
    }
    const at::Tensor values = array_named(name);
    if (values.scalar_type() != at::kChar) return values;
    return values.to(at::kFloat).mul_(array_named(scale_name(name)).to(at::kFloat).view({-1, 1}));
  }

  bool rounds_inputs(const std::string& name) const override {
    return rounds_inputs_ && !places_.contains(name) && files_.arrays[index_.at(name)].dtype == DType::kI8;
  }

  void give_back(const std::string& prefix) const override {
    for (auto it = index_.lower_bound(prefix); it != index_.end() && it->first.starts_with(prefix); ++it)
      files_.files[files_.file_of[it->second]]->drop(files_.arrays[it->second].bytes);
  }

 private:
  // A packed layer takes the place of its ".weight", in the layout in which a float one is stored.
  struct Place {
    std::string layer;
    bool transposed;
  };

  void find_packed(const DecoderConfig& config, const std::string& path) {
    try {
      packed_.emplace(files_, *config.form);
    } catch (const Error& failure) {
      throw error(failure.code(), "'{}': {}", path, failure.what());
    }
    for (const auto& [layer, sizes] : packed_->layers()) {
      const bool transposed =
          config.transposed && layer != config.names.head && !is_embedding(layer + ".weight");
      places_[layer + ".weight"] = {layer, transposed};
      shapes_[layer + ".weight"] =
          transposed ? Shape{sizes.second, sizes.first} : Shape{sizes.first, sizes.second};
    }
  }

  at::Tensor array_named(const std::string& name) const {
    const Array& array = files_.arrays[index_.at(name)];
    return rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
  }

  void check_scale(const Array& codes, const std::string& path) const {
    const auto found = index_.find(scale_name(codes.name));
    if (found == index_.end())
      throw bad_data("'{}': tensor '{}' is I8 and has no '{}' beside it", path, codes.name,
                     scale_name(codes.name));
    const Array& scale = files_.arrays[found->second];
    const uint64_t count = count_elements(scale.shape).value_or(0);
    const bool fits = codes.shape.size() == 2 && is_floating(scale.dtype) &&
                      (count == 1 || count == static_cast<uint64_t>(codes.shape[0]));
    if (!fits)
      throw bad_data("'{}': '{}' has {} values, and '{}' of {} rows needs one or one a row", path, scale.name,
                     count, codes.name, codes.shape.empty() ? 0 : codes.shape[0]);
  }

  CheckpointFiles files_;
  std::map<std::string, size_t> index_;
  std::optional<PackedReader> packed_;
  std::map<std::string, Place> places_;  // of packed layers, by the name that the float weight has
  bool rounds_inputs_;
};

}  // namespace

OpenedModel open_folder(const std::string& path) {
  DecoderConfig config = read_decoder_config(path + "/config.json");
  auto weights = std::make_unique<FolderSource>(path, config);
  name_as_stored(config.names, [&](const std::string& name) { return weights->shapes().contains(name); });
  return {std::move(config), std::move(weights)};
}

}  // namespace mcompress
