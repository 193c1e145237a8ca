#include "mcompress/model/packed_verify.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/pattern.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/decoder.h"
#include "mcompress/model/packed_folder.h"
#include "originals.h"
#include "packed_keys.h"
#include "packed_values.h"

namespace mcompress {

namespace {

using nlohmann::json;

// As readers match names: at their start.
Pattern from_start(const std::string& expression) { return Pattern("^(?:" + expression + ")"); }

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
    std::optional<Originals> originals;
    if (against) originals.emplace(*against);
    for (const auto& [name, sizes] : reader->layers()) {
      check_interrupt();
      ++result_.checked;
      try {
        const IntGroup weight = reader->read(name);
        const LayerScheme scheme = scheme_of(form, name);
        for (Finding& finding : check_values(form, name, weight, scheme))
          result_.findings.push_back(std::move(finding));
        if (is_compressed_tensors(form) && !scheme.symmetric && !names_.contains(name + ".weight_zero_point"))
          find(name, "has no zero points, and quantization_config says that it is not symmetric");
        if (originals) compare(name, weight, *originals);
      } catch (const Error& failure) {
        find(name, failure.what());
      }
    }
    if (!is_compressed_tensors(form)) return;
    try {
      check_ignored(*reader);
    } catch (const Error& failure) {
      find("config.json", failure.what());
    }
  }

  // What the configuration gives this layer.
  LayerScheme scheme_of(PackedForm form, const std::string& name) const {
    if (is_compressed_tensors(form)) {
      const json* weights = weights_of(name);
      if (weights == nullptr) return {};
      LayerScheme scheme;
      scheme.bits = number(*weights, "num_bits");
      scheme.group_size = std::max<int64_t>(-1, number(*weights, "group_size", -1));
      scheme.symmetric = weights->value("symmetric", json(true)) != false;
      return scheme;
    }
    const bool act_order = quantization_.value("desc_act", json(false)) == true,
               symmetric = quantization_.value("sym", json(true)) == true;
    const auto scheme_from = [&](const json& given) {
      return LayerScheme{number(given, "bits"), number(given, "group_size"), symmetric, act_order};
    };
    json scheme = quantization_;
    const json dynamic = quantization_.value("dynamic", json());
    // As GPTQModel: the first that matches from the start of the name on.
    if (!dynamic.is_object()) return scheme_from(scheme);
    for (const auto& [key, value] : dynamic.items()) {
      const bool marked = key.starts_with("+:") || key.starts_with("-:");
      if (!from_start(marked ? key.substr(2) : key).matches(name)) continue;
      if (value.is_object()) scheme.update(value);
      break;
    }
    return scheme_from(scheme);
  }

  // As compressed-tensors: what names the layer goes before what names its class.
  const json* weights_of(const std::string& name) const {
    const char* kind = is_embedding(name + ".weight") ? "Embedding" : "Linear";
    const json* of_class = nullptr;
    for (const json& group : quantization_.at("config_groups")) {
      const json targets = group.value("targets", json());
      for (const json& target : targets) {
        if (!target.is_string()) continue;
        const auto text = target.get<std::string>();
        const bool named =
            text == name || (text.starts_with("re:") && from_start(text.substr(3)).matches(name));
        if (named) return &group.at("weights");
        if (text == kind) of_class = &group.at("weights");
      }
    }
    return of_class;
  }

  static int64_t number(const json& object, const char* key, int64_t otherwise = 0) {
    const json value = object.value(key, json());
    return value.is_number_integer() ? value.get<int64_t>() : otherwise;
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
  void check_ignored(const PackedReader& reader) {
    std::vector<std::string> names;
    std::vector<Pattern> patterns;
    const json ignore = quantization_.value("ignore", json());
    for (const json& entry : ignore) {
      if (!entry.is_string()) continue;
      const auto text = entry.get<std::string>();
      if (text.starts_with("re:")) {
        patterns.push_back(from_start(text.substr(3)));
      } else {
        names.push_back(text);
      }
    }
    const auto ignored = [&](const std::string& name) {
      for (const Pattern& pattern : patterns) {
        if (pattern.matches(name)) return true;
      }
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    for (const auto& [name, sizes] : reader.layers()) {
      if (ignored(name)) find(name, "is packed, and quantization_config ignores it");
    }
    for (const auto& [name, sizes] : reader.layers()) {
      if (is_embedding(name + ".weight") && is_tied())
        find(name, "is packed, and readers are to find the output layer in it (tie_word_embeddings)");
    }
    // Only where all Linear modules are targets.
    bool all = false;
    for (const json& group : quantization_.at("config_groups")) {
      const json targets = group.value("targets", json());
      all = all || std::find(targets.begin(), targets.end(), "Linear") != targets.end();
    }
    for (const Array& array : files_.arrays) {
      if (!all) break;
      LayerKind kind{};
      if (!array.name.ends_with(".weight") || !guess_kind(array, kind) || kind != LayerKind::kLinear)
        continue;
      const std::string name = array.name.substr(0, array.name.rfind('.'));
      if (!ignored(name) && !reader.is_part(array.name))
        find(name, "is not packed, and quantization_config does not ignore it");
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
