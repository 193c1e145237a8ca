#include <array>
#include <string_view>
#include <utility>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/model/checkpoint.h"
#include "source.h"

namespace mcompress {

namespace {

bool is_plain_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

class FolderSource : public WeightSource {
 public:
  FolderSource(const std::string& path, const DecoderConfig& config)
      : files_(read_checkpoint(path, ModelFormat::kHuggingFace)),
        rounds_inputs_(config.rounds_inputs),
        zeros_(config.zeros) {
    for (size_t i = 0; i < files_.arrays.size(); ++i) index_[files_.arrays[i].name] = i;
    if (config.quantization.starts_with("gptq")) find_groups(config, path);
    for (const Array& array : files_.arrays) {
      if (is_part_of_group(array.name)) continue;
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

  // 8-bit codes times the scale of their row, or codes in groups.
  at::Tensor read(const std::string& name) const override {
    if (const auto group = grouped_.find(name); group != grouped_.end()) {
      const IntGroup weight = unpack_gptq(tensors_of(layer_of(name)), zeros_, layer_of(name));
      const at::Tensor values = dequantize_rows(weight, 0, weight.codes.size(0));
      return group->second.transposed ? values.t() : values;
    }
    const at::Tensor values = array_named(name);
    if (values.scalar_type() != at::kChar) return values;
    return values.to(at::kFloat).mul_(array_named(scale_name(name)).to(at::kFloat).view({-1, 1}));
  }

  bool rounds_inputs(const std::string& name) const override {
    return rounds_inputs_ && !grouped_.contains(name) && files_.arrays[index_.at(name)].dtype == DType::kI8;
  }

  void give_back(const std::string& prefix) const override {
    for (auto it = index_.lower_bound(prefix); it != index_.end() && it->first.starts_with(prefix); ++it)
      files_.files[files_.file_of[it->second]]->drop(files_.arrays[it->second].bytes);
  }

 private:
  // Layers in GPTQ's format take the place of their ".weight", in the layout in which a float one is stored.
  struct Grouped {
    bool transposed;
  };

  static std::string layer_of(const std::string& weight) {
    return weight.substr(0, weight.size() - std::string_view(".weight").size());
  }

  void find_groups(const DecoderConfig& config, const std::string& path) {
    for (const Array& array : files_.arrays) {
      if (!array.name.ends_with(kGptqParts[0])) continue;
      const std::string layer =
          array.name.substr(0, array.name.size() - std::string_view(kGptqParts[0]).size());
      for (size_t i = 0; i < kGptqParts.size(); ++i) check_part(layer, i, path);
      if (index_.contains(layer + ".weight"))
        throw bad_data("'{}': layer '{}' has both a '.qweight' and a '.weight'", path, layer);
      const int64_t outputs = array.shape[1], inputs = part_of(layer, 3).shape[0];
      const bool transposed = config.transposed && layer != config.names.head;
      grouped_[layer + ".weight"] = {transposed};
      shapes_[layer + ".weight"] = transposed ? Shape{inputs, outputs} : Shape{outputs, inputs};
    }
  }

  void check_part(const std::string& layer, size_t part, const std::string& path) const {
    constexpr std::array<size_t, 4> kDimensions = {2, 2, 2, 1};
    const std::string name = layer + kGptqParts[part];
    if (!index_.contains(name)) throw bad_data("'{}': layer '{}' lacks '{}'", path, layer, name);
    const Array& array = part_of(layer, part);
    const bool typed = part == 2 ? is_plain_float(array.dtype) : array.dtype == DType::kI32;
    if (!typed || array.shape.size() != kDimensions[part])
      throw bad_data("'{}': tensor '{}' is {} of {} dimensions, and GPTQ's is {} of {}", path, name,
                     name_of(array.dtype), array.shape.size(), part == 2 ? "F16" : "I32", kDimensions[part]);
  }

  const Array& part_of(const std::string& layer, size_t part) const {
    return files_.arrays[index_.at(layer + kGptqParts[part])];
  }

  GptqTensors tensors_of(const std::string& layer) const {
    const auto part = [&](size_t i) { return array_named(layer + kGptqParts[i]); };
    return {part(0), part(1), part(2), part(3)};
  }

  bool is_part_of_group(const std::string& name) const {
    for (const char* part : kGptqParts) {
      if (name.ends_with(part) &&
          grouped_.contains(name.substr(0, name.size() - std::string_view(part).size()) + ".weight"))
        return true;
    }
    return false;
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
  std::map<std::string, Grouped> grouped_;  // by the name that the float weight has
  bool rounds_inputs_;
  GptqZeros zeros_;
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
