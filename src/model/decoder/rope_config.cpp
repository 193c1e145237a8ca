#include "rope_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

namespace mcompress {

namespace {

using nlohmann::json;

constexpr int64_t kMostPositions = int64_t{1} << 32;
constexpr const char* kOriginal = "original_max_position_embeddings";

RopeScaling scaling_named(const std::string& type, const std::string& name) {
  constexpr std::array<std::pair<std::string_view, RopeScaling>, 7> kKnown = {
      {{"default", RopeScaling::kNone},
       {"linear", RopeScaling::kLinear},
       {"dynamic", RopeScaling::kDynamic},
       {"llama3", RopeScaling::kLlama3},
       {"yarn", RopeScaling::kYarn},
       {"longrope", RopeScaling::kLongrope},
       {"su", RopeScaling::kLongrope}}};  // as the first files of Phi-3 call it
  for (const auto& [known, scaling] : kKnown) {
    if (known == type) return scaling;
  }
  throw bad_data(
      "{}: rope type '{}' is not known; known are default, linear, dynamic, llama3, yarn and longrope", name,
      type);
}

void check_keys(const json& object, const std::string& name) {
  constexpr std::array<std::string_view, 15> kKnown = {"rope_type",
                                                       "type",
                                                       "rope_theta",
                                                       "factor",
                                                       "original_max_position_embeddings",
                                                       "low_freq_factor",
                                                       "high_freq_factor",
                                                       "beta_fast",
                                                       "beta_slow",
                                                       "attention_factor",
                                                       "truncate",
                                                       "finetuned",
                                                       "partial_rotary_factor",
                                                       "short_factor",
                                                       "long_factor"};
  for (const auto& [key, value] : object.items()) {
    if (std::find(kKnown.begin(), kKnown.end(), key) == kKnown.end() && !value.is_null())
      throw bad_data("{}: '{}' is not known", name, key);
  }
}

void read_llama3(const ConfigKeys& scaled, Rope& rope) {
  if (!scaled.has("low_freq_factor") || !scaled.has("high_freq_factor"))
    throw bad_data("{}: llama3 needs low_freq_factor and high_freq_factor", scaled.name());
  rope.low_freq_factor = scaled.number("low_freq_factor", 0);
  rope.high_freq_factor = scaled.number("high_freq_factor", 0);
  if (rope.low_freq_factor >= rope.high_freq_factor)
    throw bad_data("{}: low_freq_factor {} is not below high_freq_factor {}", scaled.name(),
                   rope.low_freq_factor, rope.high_freq_factor);
}

void read_yarn(const ConfigKeys& scaled, Rope& rope) {
  rope.beta_fast = scaled.number("beta_fast", rope.beta_fast);
  rope.beta_slow = scaled.number("beta_slow", rope.beta_slow);
  if (rope.beta_fast < rope.beta_slow || rope.theta <= 1)
    throw bad_data("{}: yarn needs beta_fast above beta_slow and rope_theta above 1", scaled.name());
  rope.truncate = scaled.flag("truncate", true);
  const double grown = rope.factor <= 1 ? 1 : 0.1 * std::log(rope.factor) + 1;
  rope.attention_factor = scaled.number("attention_factor", grown);
}

std::vector<double> read_divisors(const ConfigKeys& scaled, const char* key, int64_t count) {
  const json& list = scaled.has(key) ? scaled[key] : json();
  const bool fits = list.is_array() && static_cast<int64_t>(list.size()) == count &&
                    std::all_of(list.begin(), list.end(), [](const json& value) {
                      return value.is_number() && value.get<double>() > 0;
                    });
  if (!fits)
    throw bad_data("{}: '{}' is not a list of {} numbers above 0, one of each frequency", scaled.name(), key,
                   count);
  return list.get<std::vector<double>>();
}

// arXiv:2402.13753, as transformers computes it for Phi-3.
void read_longrope(const ConfigKeys& scaled, const RopeDefaults& defaults, Rope& rope) {
  rope.divisors = read_divisors(scaled, "short_factor", defaults.rotated_width / 2);
  rope.long_divisors = read_divisors(scaled, "long_factor", defaults.rotated_width / 2);
  const auto original = static_cast<double>(rope.original_positions);
  const double factor = scaled.number("factor", static_cast<double>(defaults.positions) / original);
  const double grown = factor <= 1 ? 1 : std::sqrt(1 + std::log(factor) / std::log(std::max(original, 2.0)));
  rope.attention_factor = scaled.number("attention_factor", grown);
}

Rope read_object(const ConfigKeys& keys, const json& object, const std::string& name,
                 const RopeDefaults& defaults) {
  check_keys(object, name);
  const ConfigKeys scaled(object, name);
  Rope rope;
  rope.theta = scaled.number("rope_theta", defaults.theta);
  std::string type = scaled.text("rope_type", scaled.text("type", "default"));
  if (defaults.original > 0 && type == "yarn") type = "longrope";  // as transformers reads it for Phi-3
  rope.scaling = scaling_named(type, keys.name());
  if (rope.scaling == RopeScaling::kNone) return rope;
  const int64_t inner = scaled.count(kOriginal, defaults.positions, kMostPositions);
  rope.original_positions =
      keys.count(kOriginal, defaults.original > 0 ? defaults.original : inner, kMostPositions);
  if (rope.scaling == RopeScaling::kLongrope) {
    read_longrope(scaled, defaults, rope);
    return rope;
  }
  if (!scaled.has("factor")) throw bad_data("{} has no factor", name);
  rope.factor = scaled.number("factor", 1);
  constexpr double kMostFactor = 1e6;
  if (rope.factor > kMostFactor) throw bad_data("{}: a factor of {} is that of no model", name, rope.factor);
  if (rope.scaling == RopeScaling::kLlama3) read_llama3(scaled, rope);
  if (rope.scaling == RopeScaling::kYarn) read_yarn(scaled, rope);
  return rope;
}

void check_one_form(const ConfigKeys& keys) {
  if (keys.has("rope_parameters") && keys.has("rope_scaling"))
    throw bad_data("{}: it has 'rope_parameters' and 'rope_scaling', which mean the same; leave one",
                   keys.name());
}

}  // namespace

Rope read_rope(const ConfigKeys& keys, const RopeDefaults& defaults) {
  static const json kEmpty = json::object();
  check_one_form(keys);
  const char* key = keys.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json& object = keys.has(key) ? keys[key] : kEmpty;
  if (!object.is_object()) throw bad_data("{}: '{}' is not an object", keys.name(), key);
  RopeDefaults with_theta = defaults;
  with_theta.theta = keys.number("rope_theta", defaults.theta);
  return read_object(keys, object, fmt::format("{}, {}", keys.name(), key), with_theta);
}

bool has_rope_by_kind(const ConfigKeys& keys) {
  if (!keys.has("rope_parameters")) return false;
  const json& object = keys["rope_parameters"];
  return object.is_object() && (object.contains("full_attention") || object.contains("sliding_attention"));
}

Rope read_rope_of_kind(const ConfigKeys& keys, const char* kind, const RopeDefaults& defaults) {
  check_one_form(keys);
  const json& both = keys["rope_parameters"];
  if (!both.contains(kind) || !both[kind].is_object())
    throw bad_data("{}: 'rope_parameters' has no object '{}'", keys.name(), kind);
  const std::string name = fmt::format("{}, rope_parameters, {}", keys.name(), kind);
  if (ConfigKeys(both[kind], name).number("partial_rotary_factor", 1) != 1)
    throw bad_data("{}: a partial_rotary_factor is not known here", name);
  return read_object(keys, both[kind], name, defaults);
}

}  // namespace mcompress
