#include "quantization_config.h"

#include <algorithm>
#include <optional>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/checkpoint.h"

namespace mcompress {

namespace {

using nlohmann::json;

Error unknown_quantization(const ConfigKeys& given, const std::string& what) {
  return bad_data(
      "{}: the model is quantized already, and {} cannot be run yet; known are gptq, awq (gemm), and "
      "compressed-tensors with packed codes, or codes in bytes",
      given.name(), what);
}

// Whether it is for embeddings alone, whose inputs are no numbers to round.
bool names_embeddings(const json& group) {
  const json targets = group.value("targets", json::array());
  return !targets.empty() && std::all_of(targets.begin(), targets.end(), [](const json& target) {
    return target.is_string() &&
           (target == "Embedding" || is_embedding(target.get<std::string>() + ".weight"));
  });
}

// Reads what compressed-tensors says of weights, whose tensors tell their bits and groups, and of inputs that
// are rounded to 8 bits; other quantized weights cannot be run.
FolderQuantization read_compressed_tensors(const ConfigKeys& given) {
  const auto unknown = [&](const std::string& what) { return unknown_quantization(given, what); };
  const std::string format = given.text("format", "");
  const bool packed = format == "pack-quantized";
  if (!packed && format != "int-quantized") throw unknown(fmt::format("weights of format '{}'", format));
  if (!given.has("config_groups") || !given["config_groups"].is_object() || given["config_groups"].empty())
    throw unknown("weights without config_groups");
  for (const char* key : {"kv_cache_scheme", "transform_config", "sparsity_config"}) {
    if (given.has(key) && !given[key].empty()) throw unknown(fmt::format("its {}", key));
  }
  int64_t bits = 0;
  // `by_row`: in 8 bits and symmetric with one scale a row, as inputs that are rounded and their weights are.
  const auto check = [&](const json& scheme, const char* what, bool by_row) {
    const ConfigKeys numbers(scheme, given.name());
    const std::string strategy = numbers.text("strategy", "");
    const int64_t width = numbers.count("num_bits", 0);
    bits = std::max(bits, width);
    const bool whole = numbers.text("type", "") == "int", symmetric = numbers.flag("symmetric", !by_row);
    if (packed && whole) return;
    const bool whole_rows = strategy == "channel" || strategy == "tensor" || strategy == "token";
    const bool known = whole && !numbers.has("actorder") &&
                       (by_row ? width == 8 && symmetric && whole_rows
                               : width >= 2 && width <= 8 && (whole_rows || strategy == "group"));
    if (!known) throw unknown(fmt::format("{} {}", what, scheme.dump()));
  };
  std::optional<bool> rounds;
  for (const auto& [name, group] : given["config_groups"].items()) {
    if (!group.is_object() || !group.contains("weights") || !group["weights"].is_object())
      throw unknown("a group without weights");
    if (!group.value("output_activations", json()).is_null()) throw unknown("rounded outputs");
    const json inputs = group.value("input_activations", json());
    check(group["weights"], "weights", !inputs.is_null());
    if (packed && !inputs.is_null()) throw unknown("packed weights with input_activations");
    if (!inputs.is_null()) {
      check(inputs, "input_activations", true);
      if (inputs["strategy"] != "token" || inputs.value("dynamic", json()) != true)
        throw unknown(fmt::format("input_activations {}", inputs.dump()));
    }
    if (names_embeddings(group)) continue;
    if (rounds && *rounds == inputs.is_null()) throw unknown("groups of which some round their inputs");
    rounds = !inputs.is_null();
  }
  FolderQuantization result{fmt::format("compressed-tensors, {} bits", bits), rounds.value_or(false), {}};
  if (packed) result.form = PackedForm::kCompressedTensors;
  if (!packed && !rounds.value_or(true)) result.form = PackedForm::kPlainCodes;
  if (result.form) return result;
  for (const auto& [name, group] : given["config_groups"].items()) check(group["weights"], "weights", true);
  return result;
}

// The layers tell their bits and groups themselves.
FolderQuantization read_gptq(const ConfigKeys& given) {
  const std::string format = given.text("checkpoint_format", given.text("format", "gptq"));
  if (format != "gptq" && format != "gptq_v2")
    throw unknown_quantization(given, fmt::format("weights of checkpoint_format '{}'", format));
  return {fmt::format("gptq, {} bits", given.count("bits", 0)), false,
          format == "gptq" ? PackedForm::kGptq : PackedForm::kGptqV2};
}

FolderQuantization read_awq(const ConfigKeys& given) {
  const std::string version = given.text("version", "gemm");
  const int64_t bits = given.count(given.has("bits") ? "bits" : "w_bit", 4);
  if (version != "gemm" || bits != 4)
    throw unknown_quantization(given, fmt::format("awq of version '{}' and {} bits", version, bits));
  return {"awq, 4 bits", false, PackedForm::kAwq};
}

}  // namespace

FolderQuantization read_quantization(const ConfigKeys& keys) {
  if (!keys.has("quantization_config")) return {};
  const ConfigKeys given(keys["quantization_config"], keys.name() + ", quantization_config");
  const std::string method = given.text("quant_method", "");
  if (method == "gptq") return read_gptq(given);
  if (method == "awq") return read_awq(given);
  if (method == "compressed-tensors") return read_compressed_tensors(given);
  throw unknown_quantization(given, fmt::format("weights of '{}'", method));
}

FolderQuantization read_quantization(const std::string& folder) {
  const std::string path = folder + "/config.json";
  const json config = read_json_file(path);
  if (!config.is_object()) throw bad_data("'{}' is no JSON object", path);
  return read_quantization(ConfigKeys(config, fmt::format("'{}'", path)));
}

}  // namespace mcompress
