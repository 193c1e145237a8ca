#include "packed_keys.h"

#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace mcompress {

namespace {

using nlohmann::json;

const char* name_of(json::value_t type) {
  switch (type) {
    case json::value_t::number_integer: return "a whole number";
    case json::value_t::number_float: return "a number";
    case json::value_t::boolean: return "true or false";
    case json::value_t::string: return "a text";
    case json::value_t::array: return "a list";
    default: return "an object";
  }
}

struct Key {
  const char* name;
  bool needed;
  json::value_t type;
};

void check(const json& object, const std::string& where, const std::vector<Key>& keys,
           std::vector<Finding>& findings) {
  for (const Key& key : keys) {
    const json value = object.value(key.name, json());
    const bool counted = value.is_number_integer();
    const auto type = counted ? json::value_t::number_integer : value.type();
    if (value.is_null() && !key.needed) continue;
    if (value.is_null()) {
      findings.push_back({where, fmt::format("lacks '{}', which readers need", key.name)});
    } else if (type != key.type && !(counted && key.type == json::value_t::number_float)) {
      findings.push_back({where, fmt::format("'{}' is {}, and readers expect {}", key.name, value.dump(),
                                             name_of(key.type))});
    }
  }
}

}  // namespace

std::vector<Finding> check_keys(PackedForm form, const json& quantization) {
  using enum json::value_t;
  const std::string where = "config.json";
  std::vector<Finding> findings;
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2:
      check(quantization, where,
            {{"bits", true, number_integer},
             {"group_size", true, number_integer},
             {"desc_act", true, boolean},
             {"sym", true, boolean},
             {"lm_head", false, boolean},
             {"true_sequential", false, boolean},
             {"static_groups", false, boolean},
             {"damp_percent", false, number_float},
             {"dynamic", false, object},
             {"modules_in_block_to_quantize", false, array}},
            findings);
      break;
    case PackedForm::kAwq: {
      // As AutoAWQ first named them, or as it does now.
      const char* bits = quantization.contains("w_bit") ? "w_bit" : "bits";
      const char* size = quantization.contains("q_group_size") ? "q_group_size" : "group_size";
      check(quantization, where,
            {{bits, true, number_integer},
             {size, true, number_integer},
             {"zero_point", true, boolean},
             {"modules_to_not_convert", false, array}},
            findings);
      break;
    }
    case PackedForm::kCompressedTensors:
    case PackedForm::kPlainCodes:
      check(quantization, where, {{"ignore", false, array}}, findings);
      for (const auto& [name, group] : quantization.at("config_groups").items()) {
        const std::string path = where + ", config_groups." + name;
        check(group, path, {{"targets", true, array}}, findings);
        check(group.at("weights"), path + ".weights",
              {{"num_bits", false, number_integer},
               {"type", false, string},
               {"symmetric", false, boolean},
               {"strategy", false, string},
               {"group_size", false, number_integer}},
              findings);
      }
  }
  return findings;
}

}  // namespace mcompress
