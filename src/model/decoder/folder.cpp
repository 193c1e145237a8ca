#include <utility>

#include "mcompress/base/error.h"
#include "mcompress/model/checkpoint.h"
#include "source.h"

namespace mcompress {

namespace {

class FolderSource : public WeightSource {
 public:
  explicit FolderSource(const std::string& path) : files_(read_checkpoint(path, ModelFormat::kHuggingFace)) {
    for (size_t i = 0; i < files_.arrays.size(); ++i) {
      const Array& array = files_.arrays[i];
      const bool known =
          array.dtype == DType::kF32 || array.dtype == DType::kF16 || array.dtype == DType::kBF16;
      if (!known)
        throw bad_data("'{}': tensor '{}' is {}; F32, F16 and BF16 can be computed with", path, array.name,
                       name_of(array.dtype));
      index_[array.name] = i;
      shapes_[array.name] = array.shape;
    }
  }

  at::Tensor read(const std::string& name) const override {
    const Array& array = files_.arrays[index_.at(name)];
    return rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
  }

  void give_back(const std::string& prefix) const override {
    for (auto it = index_.lower_bound(prefix); it != index_.end() && it->first.starts_with(prefix); ++it)
      files_.files[files_.file_of[it->second]]->drop(files_.arrays[it->second].bytes);
  }

 private:
  CheckpointFiles files_;
  std::map<std::string, size_t> index_;
};

}  // namespace

OpenedModel open_folder(const std::string& path) {
  DecoderConfig config = read_decoder_config(path + "/config.json");
  auto weights = std::make_unique<FolderSource>(path);
  // Without its head a model is saved without the name of its body: "wte", not "transformer.wte".
  const auto has = [&](const std::string& name) { return weights->shapes().contains(name + ".weight"); };
  DecoderNames& names = config.names;
  const std::string outer = names.base.substr(0, names.base.find('.') + 1),
                    inner = names.base.substr(outer.size());
  if (!has(names.base + names.embedding) && has(inner + names.embedding)) names.base = inner;
  return {std::move(config), std::move(weights)};
}

}  // namespace mcompress
