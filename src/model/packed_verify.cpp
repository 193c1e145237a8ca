#include "mcompress/model/packed_verify.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "folder_files.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/decoder.h"
#include "mcompress/model/packed_folder.h"
#include "originals.h"
#include "packed_keys.h"
#include "packed_schemes.h"
#include "packed_values.h"

namespace mcompress {

namespace {

using nlohmann::json;

constexpr const char *kIgnored = "is packed, and quantization_config ignores it",
                     *kTaken = "is not packed, and quantization_config does not ignore it";

class Verifier {
 public:
  explicit Verifier(const std::string& folder) : folder_(folder) {}

  Verification run(const std::optional<std::string>& against) {
    try {
      config_ = read_json_file(folder_ + "/config.json");
      if (!config_.is_object()) throw bad_data("'{}/config.json' is no object", folder_);
      files_ = read_checkpoint(folder_, ModelFormat::kHuggingFace);
    } catch (const Error& failure) {
      if (failure.code() != Exit::kBadData) throw;
      find(folder_, failure.what());
      return std::move(result_);
    }
    for (const Array& array : files_.arrays) names_.insert(array.name);
    check_finite();
    check_orphans();
    if (const auto form = form_of_config()) check_layers(*form, against);
    check_architecture();
    return std::move(result_);
  }

 private:
  void find(const std::string& where, const std::string& what) { result_.findings.push_back({where, what}); }

  // What the configuration says, if it says something that is known.
  std::optional<PackedForm> form_of_config() {
    auto guessed = guess_form(files_);
    if (config_.value("quantization_config", json()).is_null()) {
      if (guessed)
        find("config.json",
             fmt::format("there are packed layers of {}, and no quantization_config", name_of(*guessed)));
      return std::nullopt;
    }
    quantization_ = config_["quantization_config"];
    check_second_config();
    try {
      const FolderQuantization read = read_quantization(folder_);
      // Layers that round their inputs have plain codes too.
      const PackedForm form = read.form.value_or(PackedForm::kPlainCodes);
      if (!guessed && form == PackedForm::kPlainCodes && has_plain_codes()) guessed = form;
      if (!guessed)
        find("config.json",
             fmt::format("quantization_config tells of {}, and no layer is packed", read.text));
      const bool same = guessed && (name_of(*guessed) == std::string(name_of(form)));
      if (guessed && !same)
        find("config.json", fmt::format("quantization_config tells of {}, and the tensors are those of {}",
                                        name_of(form), name_of(*guessed)));
      for (Finding& finding : check_keys(form, quantization_)) result_.findings.push_back(std::move(finding));
      return same ? std::optional(form) : std::nullopt;
    } catch (const Error& failure) {
      find("config.json", failure.what());
      return std::nullopt;
    }
  }

  // One scale a row is of other 8-bit weights too.
  bool has_plain_codes() const {
    return std::any_of(files_.arrays.begin(), files_.arrays.end(), [](const Array& array) {
      return array.dtype == DType::kI8 && array.name.ends_with(".weight");
    });
  }

  // Which of the two a reader takes depends on the reader.
  void check_second_config() {
    const std::string path = folder_ + "/quantize_config.json";
    if (!std::filesystem::exists(path)) return;
    try {
      const json other = read_json_file(path);
      for (const auto& [key, value] : other.items()) {
        if (quantization_.contains(key) && quantization_[key] != value)
          find("quantize_config.json", fmt::format("'{}' is {}, and in config.json {}", key, value.dump(),
                                                   quantization_[key].dump()));
      }
    } catch (const Error& failure) {
      find("quantize_config.json", failure.what());
    }
  }

  void check_finite() {
    for (size_t i = 0; i < files_.arrays.size(); ++i) {
      const Array& array = files_.arrays[i];
      if (!is_floating(array.dtype)) continue;
      check_interrupt();
      const ElementCount count = count_elements_of(array, *files_.files[files_.file_of[i]]);
      if (count.non_finite > 0)
        find(array.name, fmt::format("has {} values that are NaN or infinite", count.non_finite));
    }
  }

  // Parts of layers whose first tensor is not there.
  void check_orphans() {
    std::map<std::string, std::string> first_of;
    for (const PackedForm form : {PackedForm::kGptq, PackedForm::kCompressedTensors}) {
      for (const std::string& suffix : packed_suffixes(form)) first_of[suffix] = packed_suffixes(form)[0];
    }
    for (const std::string& name : names_) {
      const size_t dot = name.rfind('.');
      if (dot == std::string::npos) continue;
      const auto first = first_of.find(name.substr(dot));
      if (first == first_of.end()) continue;
      const std::string layer = name.substr(0, dot);
      // A scale also goes with codes of 8 bits.
      if (!names_.contains(layer + first->second) && !names_.contains(layer + ".weight"))
        find(name, fmt::format("is left over: there is no '{}{}'", layer, first->second));
    }
  }

  void check_layers(PackedForm form, const std::optional<std::string>& against) {
    std::optional<PackedReader> reader;
    try {
      reader.emplace(files_, form);
    } catch (const Error& failure) {
      return find(folder_, failure.what());
    }
    std::optional<PackedSchemes> schemes;
    try {
      schemes.emplace(form, read_ordered(folder_ + "/config.json").at("quantization_config"));
    } catch (const Error& failure) {
      return find("config.json", failure.what());
    }
    std::optional<Originals> originals;
    if (against) originals.emplace(*against);
    for (const auto& [name, sizes] : reader->layers()) {
      check_interrupt();
      ++result_.checked;
      try {
        const IntGroup weight = reader->read(name);
        const LayerScheme scheme = schemes->of(name);
        for (Finding& finding : check_values(form, name, weight, scheme))
          result_.findings.push_back(std::move(finding));
        if (is_compressed_tensors(form) && !scheme.symmetric && !names_.contains(name + ".weight_zero_point"))
          find(name, "has no zero points, and quantization_config says that it is not symmetric");
        if (originals) compare(name, weight, *originals);
      } catch (const Error& failure) {
        find(name, failure.what());
      }
    }
    try {
      is_compressed_tensors(form) ? check_targets(*reader, *schemes) : check_blocks(form, *reader, *schemes);
    } catch (const Error& failure) {
      find("config.json", failure.what());
    }
  }

  void compare(const std::string& name, const IntGroup& weight, const Originals& originals) {
    const int bits = code_width(weight);
    const double sqnr = originals.sqnr_of(name, weight),
                 least = Originals::least_sqnr(bits, weight.scale.size(1));
    result_.layers.push_back({name, sqnr});
    if (sqnr < least)
      find(name, fmt::format(
                     "has {:.1f} dB beside the original, and {} bits should give {:.0f} at least: its codes, "
                     "scales or order look wrong",
                     sqnr, bits, least));
  }

  // Whether the embedding is the output layer, which not every configuration says.
  bool is_tied() const {
    try {
      return read_model_config(folder_).tied_head;
    } catch (const Error&) {
      return config_.value("tie_word_embeddings", json()) == true;
    }
  }

  // Readers make every Linear of the targets a packed one.
  void check_targets(const PackedReader& reader, const PackedSchemes& schemes) {
    for (const auto& [name, sizes] : reader.layers()) {
      if (schemes.left_alone(name).all) find(name, kIgnored);
    }
    for (const auto& [name, sizes] : reader.layers()) {
      if (is_embedding(name + ".weight") && is_tied())
        find(name, "is packed, and readers are to find the output layer in it (tie_word_embeddings)");
    }
    if (!schemes.takes_every_linear()) return;
    for (const Array& array : files_.arrays) {
      LayerKind kind{};
      if (!array.name.ends_with(".weight") || !guess_kind(array, kind) || kind != LayerKind::kLinear)
        continue;
      const std::string name = array.name.substr(0, array.name.rfind('.'));
      if (!schemes.left_alone(name).some && !reader.is_part(array.name)) find(name, kTaken);
    }
  }

  // Readers make the layers of blocks packed ones, and the output layer where 'lm_head' says so.
  void check_blocks(PackedForm form, const PackedReader& reader, const PackedSchemes& schemes) {
    const std::optional<DecoderConfig> config = language_model();
    if (!config) return;
    for (int64_t block = 0; block < config->blocks; ++block) {
      for (const auto& stage : stages_of(*config, block)) {
        for (const DecoderLayer& layer : stage) {
          const bool packed = reader.layers().contains(layer.name);
          const PackedSchemes::Readers left = schemes.left_alone(layer.name);
          if (packed && left.all) find(layer.name, kIgnored);
          if (!packed && !left.some) find(layer.name, kTaken);
        }
      }
    }
    const std::string& head = config->names.head;
    const bool packed = reader.layers().contains(head);
    if (is_gptq(form) && packed != (quantization_.value("lm_head", json()) == true))
      find(head, packed ? "is packed, and 'lm_head' is not true in quantization_config"
                        : "is not packed, and 'lm_head' is true in quantization_config");
  }

  // Where its tensors are those of its architecture, and that is known.
  std::optional<DecoderConfig> language_model() const {
    try {
      return Decoder(folder_, at::kFloat).config();
    } catch (const Error&) {
      return std::nullopt;
    }
  }

  // A language model lacks nothing and has nothing else.
  void check_architecture() {
    if (!result_.findings.empty()) return;
    try {
      read_model_config(folder_);
    } catch (const Error&) {
      return;  // of another kind, which is fine
    }
    try {
      const Decoder model(folder_, at::kFloat);
    } catch (const Error& failure) {
      find(folder_, failure.what());
    }
  }

  std::string folder_;
  json config_, quantization_;
  CheckpointFiles files_;
  std::set<std::string> names_;
  Verification result_;
};

}  // namespace

Verification verify_folder(const std::string& folder, const std::optional<std::string>& against) {
  return Verifier(folder).run(against);
}

}  // namespace mcompress
