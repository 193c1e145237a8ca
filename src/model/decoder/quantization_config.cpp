#include "quantization_config.h"

#include <optional>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"

namespace mcompress {

namespace {

using nlohmann::json;

Error unknown_quantization(const ConfigKeys& given, const std::string& what) {
  return bad_data(
      "{}: the model is quantized already, and {} cannot be run yet; known are gptq, and compressed-tensors "
      "with "
      "symmetric 8-bit weights",
      given.name(), what);
}

// Reads what compressed-tensors says of 8-bit weights; other quantized weights cannot be run.
void read_compressed_tensors(const ConfigKeys& given, DecoderConfig& config) {
  const auto unknown = [&](const std::string& what) { return unknown_quantization(given, what); };
  const std::string format = given.text("format", "");
  if (format != "int-quantized") throw unknown(fmt::format("weights of format '{}'", format));
  if (!given.has("config_groups") || !given["config_groups"].is_object())
    throw unknown("weights without config_groups");
  for (const char* key : {"kv_cache_scheme", "transform_config", "sparsity_config"}) {
    if (given.has(key) && !given[key].empty()) throw unknown(fmt::format("its {}", key));
  }
  const auto check = [&](const json& scheme, const char* what) {
    const ConfigKeys numbers(scheme, given.name());
    const std::string strategy = numbers.text("strategy", "");
    const bool known = numbers.count("num_bits", 0) == 8 && numbers.text("type", "") == "int" &&
                       numbers.flag("symmetric", false) && !numbers.has("actorder") &&
                       (strategy == "channel" || strategy == "tensor" || strategy == "token");
    if (!known) throw unknown(fmt::format("{} {}", what, scheme.dump()));
  };
  std::optional<bool> rounds;
  for (const auto& [name, group] : given["config_groups"].items()) {
    if (!group.is_object() || !group.contains("weights") || !group["weights"].is_object())
      throw unknown("a group without weights");
    if (!group.value("output_activations", json()).is_null()) throw unknown("rounded outputs");
    check(group["weights"], "weights");
    const json inputs = group.value("input_activations", json());
    if (!inputs.is_null()) {
      check(inputs, "input_activations");
      if (inputs["strategy"] != "token" || inputs.value("dynamic", json()) != true)
        throw unknown(fmt::format("input_activations {}", inputs.dump()));
    }
    if (rounds && *rounds == inputs.is_null()) throw unknown("groups of which some round their inputs");
    rounds = !inputs.is_null();
  }
  if (!rounds) throw unknown("weights without config_groups");
  config.rounds_inputs = *rounds;
  config.quantization = "compressed-tensors, 8 bits";
}

// The layers tell their bits and groups themselves.
void read_gptq(const ConfigKeys& given, DecoderConfig& config) {
  const std::string format = given.text("checkpoint_format", given.text("format", "gptq"));
  if (format != "gptq" && format != "gptq_v2")
    throw unknown_quantization(given, fmt::format("weights of checkpoint_format '{}'", format));
  config.zeros = format == "gptq" ? GptqZeros::kLessOne : GptqZeros::kPlain;
  config.quantization = fmt::format("gptq, {} bits", given.count("bits", 0));
}

}  // namespace

void read_quantization(const ConfigKeys& keys, DecoderConfig& config) {
  if (!keys.has("quantization_config")) return;
  const ConfigKeys given(keys["quantization_config"], keys.name() + ", quantization_config");
  const std::string method = given.text("quant_method", "");
  if (method == "gptq") return read_gptq(given, config);
  if (method == "compressed-tensors") return read_compressed_tensors(given, config);
  throw unknown_quantization(given, fmt::format("weights of '{}'", method));
}

}  // namespace mcompress
