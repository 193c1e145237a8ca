#include <utility>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/model/checkpoint.h"
#include "source.h"

namespace mcompress {

namespace {

class FolderSource : public WeightSource {
 public:
  FolderSource(const std::string& path, const DecoderConfig& config)
      : files_(read_checkpoint(path, ModelFormat::kHuggingFace)), rounds_inputs_(config.rounds_inputs) {
    for (size_t i = 0; i < files_.arrays.size(); ++i) index_[files_.arrays[i].name] = i;
    for (const Array& array : files_.arrays) {
      shapes_[array.name] = array.shape;
      if (is_known_extra(array.name, config)) continue;
      const bool floating =
          array.dtype == DType::kF32 || array.dtype == DType::kF16 || array.dtype == DType::kBF16;
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

  // 8-bit codes times the scale of their row.
  at::Tensor read(const std::string& name) const override {
    const at::Tensor values = array_named(name);
    if (values.scalar_type() != at::kChar) return values;
    return values.to(at::kFloat).mul_(array_named(scale_name(name)).to(at::kFloat).view({-1, 1}));
  }

  bool rounds_inputs(const std::string& name) const override {
    return rounds_inputs_ && files_.arrays[index_.at(name)].dtype == DType::kI8;
  }

  void give_back(const std::string& prefix) const override {
    for (auto it = index_.lower_bound(prefix); it != index_.end() && it->first.starts_with(prefix); ++it)
      files_.files[files_.file_of[it->second]]->drop(files_.arrays[it->second].bytes);
  }

 private:
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
  bool rounds_inputs_;
};

}  // namespace

OpenedModel open_folder(const std::string& path) {
  DecoderConfig config = read_decoder_config(path + "/config.json");
  auto weights = std::make_unique<FolderSource>(path, config);
  // Without its head a model is saved without the name of its body: "wte", not "transformer.wte".
  const auto has = [&](const std::string& name) { return weights->shapes().contains(name + ".weight"); };
  DecoderNames& names = config.names;
  const std::string outer = names.base.substr(0, names.base.find('.') + 1),
                    inner = names.base.substr(outer.size());
  if (!has(names.base + names.embedding) && has(inner + names.embedding)) names.base = inner;
  return {std::move(config), std::move(weights)};
}

}  // namespace mcompress
