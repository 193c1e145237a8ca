#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/model/packed_folder.h"
#include "test_files.h"

namespace mcompress {
namespace {

using nlohmann::json;
using testing::TemporaryFolder;
using testing::write_file;

TEST(MalformedQuantizationConfig, IsRefusedWithTheReason) {
  const json weights = {{"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", 32}},
             group = {{"weights", weights}};
  const auto packed = [&](const json& changes) {
    json config = {{"quant_method", "compressed-tensors"},
                   {"format", "pack-quantized"},
                   {"config_groups", {{"group_0", group}}}};
    if (!changes.empty()) config.update(changes);
    return config;
  };
  const auto int8 = [&](const json& of_weights, const json& of_inputs = nullptr) {
    json eight = {{"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "channel"}};
    if (!of_weights.empty()) eight.update(of_weights);
    return packed({{"format", "int-quantized"},
                   {"config_groups", {{"g", {{"weights", eight}, {"input_activations", of_inputs}}}}}});
  };
  const json tokens = {
      {"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
  const auto gptq = [](const json& changes) {
    json config = {{"quant_method", "gptq"}, {"bits", 4}};
    if (!changes.empty()) config.update(changes);
    return config;
  };
  const auto awq = [](const json& changes) {
    json config = {{"quant_method", "awq"}, {"bits", 4}};
    if (!changes.empty()) config.update(changes);
    return config;
  };
  const std::vector<std::pair<json, std::string>> cases = {
      {4, "quantization_config"},
      {"gptq", "quantization_config"},
      {json::array({1}), "quantization_config"},
      {json::object(), "weights of ''"},
      {{{"quant_method", 4}}, "'quant_method' is 4"},
      {{{"quant_method", "bitsandbytes"}}, "weights of 'bitsandbytes'"},
      {gptq({{"checkpoint_format", "marlin"}}), "checkpoint_format 'marlin'"},
      {gptq({{"format", "bitblas"}}), "checkpoint_format 'bitblas'"},
      {gptq({{"checkpoint_format", 2}}), "'checkpoint_format' is 2"},
      {gptq({{"bits", "four"}}), "'bits' is \"four\""},
      {gptq({{"bits", -4}}), "'bits' is -4"},
      {gptq({{"bits", 0}}), "'bits' is 0"},
      {gptq({{"bits", 1e30}}), "'bits' is 1e+30"},
      {gptq({{"bits", uint64_t{1} << 63}}), "'bits' is 9223372036854775808"},
      {awq({{"version", "gemv"}}), "awq of version 'gemv'"},
      {awq({{"version", json::array()}}), "'version' is []"},
      {awq({{"bits", 3}}), "and 3 bits"},
      {awq({{"bits", nullptr}, {"w_bit", 8}}), "and 8 bits"},
      {packed({{"format", "marlin-24"}}), "weights of format 'marlin-24'"},
      {packed({{"format", nullptr}}), "weights of format ''"},
      {packed({{"format", 3}}), "'format' is 3"},
      {packed({{"config_groups", nullptr}}), "weights without config_groups"},
      {packed({{"config_groups", json::array({group})}}), "weights without config_groups"},
      {packed({{"config_groups", json::object()}}), "weights without config_groups"},
      {packed({{"config_groups", {{"g", 1}}}}), "a group without weights"},
      {packed({{"config_groups", {{"g", {{"weights", "int4"}}}}}}), "a group without weights"},
      {packed({{"config_groups", {{"g", {{"weights", nullptr}}}}}}), "a group without weights"},
      {packed({{"config_groups", {{"g", {{"weights", weights}, {"output_activations", weights}}}}}}),
       "rounded outputs"},
      {packed({{"config_groups", {{"g", {{"weights", weights}, {"input_activations", weights}}}}}}),
       "packed weights with input_activations"},
      {packed({{"config_groups", {{"g", {{"weights", {{"num_bits", "4"}}}}}}}}), "'num_bits' is \"4\""},
      {packed({{"config_groups", {{"g", {{"weights", {{"num_bits", 4}, {"type", "float"}}}}}}}}),
       "weights {\"num_bits\":4"},
      {packed({{"kv_cache_scheme", weights}}), "its kv_cache_scheme"},
      {packed({{"transform_config", {{"a", 1}}}}), "its transform_config"},
      {packed({{"sparsity_config", {{"format", "sparse-24-bitmask"}}}}), "its sparsity_config"},
      {int8({{"symmetric", false}}, tokens), "weights {"},
      {int8({{"num_bits", 4}}, tokens), "weights {"},
      {int8({{"strategy", "group"}}, tokens), "weights {"},
      {int8({{"symmetric", "yes"}}), "'symmetric' is \"yes\""},
      {int8({{"num_bits", 9}}), "weights {"},
      {int8({{"num_bits", 1}}), "weights {"},
      {int8({{"strategy", "block"}}), "weights {"},
      {int8({{"actorder", "group"}}), "weights {"},
      {int8({}, {{"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "tensor"}}),
       "input_activations {"},
  };
  const TemporaryFolder folder;
  const auto read = [&](const json& given) {
    write_file(folder / "config.json", json{{"model_type", "llama"}, {"quantization_config", given}}.dump());
    return read_quantization(folder / "").text;
  };
  EXPECT_EQ(read(gptq({})), "gptq, 4 bits");
  EXPECT_EQ(read(awq({})), "awq, 4 bits");
  EXPECT_EQ(read(packed({})), "compressed-tensors, 4 bits");
  EXPECT_EQ(read(int8({})), "compressed-tensors, 8 bits");
  EXPECT_EQ(read(int8({}, tokens)), "compressed-tensors, 8 bits");
  EXPECT_EQ(read(int8({{"num_bits", 4}, {"strategy", "group"}, {"symmetric", false}})),
            "compressed-tensors, 4 bits");
  for (const auto& [given, reason] : cases) {
    try {
      read(given);
      ADD_FAILURE() << given.dump() << " was accepted";
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData) << given.dump();
      EXPECT_NE(std::string(failure.what()).find(reason), std::string::npos)
          << given.dump() << ": " << failure.what();
    }
  }
}

}  // namespace
}  // namespace mcompress
