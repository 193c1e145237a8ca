#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/ranges.h>

#include "group_options.h"
#include "mcompress/base/error.h"
#include "mcompress/base/pattern.h"

namespace mcompress::cli {

namespace {

// One --layer-config.
struct LayerConfig {
  Pattern expression;
  std::optional<int64_t> bits, group_size;
  bool used = false;
};

std::optional<int64_t> whole_number(const std::string& text) {
  int64_t value = 0;
  return CLI::detail::lexical_cast(text, value) ? std::optional(value) : std::nullopt;
}

// The expression ends at the last '=', so that it may have some itself.
LayerConfig parse_layer_config(const std::string& text) {
  const auto refuse = [&](const std::string& what) {
    return error(Exit::kUsage, "--layer-config '{}': {}; write RE=bits:8,group:64", text, what);
  };
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) throw refuse("there is no '=' after an expression");
  LayerConfig config{Pattern(text.substr(0, equals)), {}, {}};
  for (const std::string& item : CLI::detail::split(text.substr(equals + 1), ',')) {
    const size_t colon = item.find(':');
    const std::string key = item.substr(0, colon);
    const auto value = colon == std::string::npos ? std::nullopt : whole_number(item.substr(colon + 1));
    if (!value || (key != "bits" && key != "group"))
      throw refuse(fmt::format("'{}' is neither bits:N nor group:N", item));
    if (key == "bits" && (*value < 2 || *value > 8))
      throw refuse(fmt::format("bits:{} is not from 2 to 8", *value));
    if (key == "group" && (*value == 0 || *value < -1 || *value > kLargestGroup))
      throw refuse(fmt::format("group:{} is neither -1 nor from 1 to {}", *value, kLargestGroup));
    (key == "bits" ? config.bits : config.group_size) = *value;
  }
  return config;
}

// Names that differ in their numbers only, such as those of blocks, as one: "layers.*.q_proj (30 layers)".
std::string summary_of(const std::vector<std::pair<std::string, int64_t>>& layers) {
  std::vector<std::pair<std::string, int64_t>> patterns;  // with their inputs
  std::vector<std::vector<std::string>> members;
  for (const auto& [name, inputs] : layers) {
    std::string pattern;
    for (const char c : name) {
      const bool digit = c >= '0' && c <= '9';
      if (!digit) pattern += c;
      if (digit && !pattern.ends_with('*')) pattern += '*';
    }
    const auto found = std::find(patterns.begin(), patterns.end(), std::pair(pattern, inputs));
    if (found == patterns.end()) {
      patterns.emplace_back(pattern, inputs);
      members.push_back({name});
    } else {
      members[static_cast<size_t>(found - patterns.begin())].push_back(name);
    }
  }
  std::vector<std::string> texts;
  for (size_t i = 0; i < patterns.size(); ++i) {
    const auto& names = members[i];
    texts.push_back(names.size() == 1 ? fmt::format("'{}' has {}", names[0], patterns[i].second)
                                      : fmt::format("'{}' ({} layers) have {}", patterns[i].first,
                                                    names.size(), patterns[i].second));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

// The half of it, or of that, which divides the inputs; none below what kernels know.
std::optional<int64_t> smaller_group(int64_t group_size, int64_t inputs) {
  constexpr int64_t kLeast = 16;
  for (int64_t size = group_size; size >= kLeast; size /= 2) {
    if (inputs % size == 0) return size;
  }
  return std::nullopt;
}

// A layer whose inputs its group size does not divide.
struct Indivisible {
  std::string name;
  int64_t inputs, group_size;
};

[[noreturn]] void refuse_indivisible(const std::vector<Indivisible>& layers) {
  std::vector<std::pair<std::string, int64_t>> names;
  int64_t fits = layers.front().group_size;
  bool one_size = true;
  for (const Indivisible& layer : layers) {
    names.emplace_back(layer.name, layer.inputs);
    one_size = one_size && layer.group_size == layers.front().group_size;
  }
  for (bool again = true; again;) {
    again = false;
    for (const Indivisible& layer : layers) {
      if (layer.inputs % fits == 0) continue;
      fits = smaller_group(fits, layer.inputs).value_or(-1);
      again = fits > 0;
      if (fits < 0) break;
    }
  }
  throw error(
      Exit::kUsage,
      "layer {} input features, which {} does not divide; use {}, or --group-size-fallback adjust, tail or "
      "ignore",
      summary_of(names),
      one_size ? fmt::format("a group size of {}", layers.front().group_size) : "their group size",
      fits > 0 ? fmt::format("{}, which divides them all", fits) : "a divisor or -1");
}

}  // namespace

std::map<std::string, GroupGrid> choose_grids(const GroupOptions& options,
                                              const std::vector<GroupedLayer>& layers,
                                              std::vector<Decision>& plan) {
  std::vector<LayerConfig> configs;
  for (const std::string& text : options.layer_configs) configs.push_back(parse_layer_config(text));
  std::map<std::string, const GroupedLayer*> by_name;
  for (const GroupedLayer& layer : layers) by_name[layer.name] = &layer;
  std::map<std::string, GroupGrid> grids;
  std::vector<Indivisible> indivisible;
  for (Decision& decision : plan) {
    const auto layer = by_name.find(decision.name);
    const bool embedding = layer != by_name.end() && layer->second->embedding;
    GroupGrid grid{static_cast<int>(embedding ? options.embedding_bits : options.bits), options.group_size,
                   options.symmetric, options.search};
    const auto form = form_of(options);
    const bool by_rows = embedding && form && is_compressed_tensors(*form);
    if (by_rows) grid = {grid.bits, -1, true, grid.search};
    for (LayerConfig& config : configs) {
      if (!config.expression.matches(decision.name)) continue;
      config.used = true;
      grid.bits = static_cast<int>(config.bits.value_or(grid.bits));
      if (!by_rows) grid.group_size = config.group_size.value_or(grid.group_size);
    }
    if (!decision.reason.empty() || layer == by_name.end()) continue;
    const int64_t inputs = layer->second->inputs;
    const std::string& fallback = options.group_size_fallback;
    const bool divides = grid.group_size < 0 || grid.group_size >= inputs || inputs % grid.group_size == 0;
    if (!divides && fallback != "tail") {
      const auto adjusted = smaller_group(grid.group_size, inputs);
      if (fallback == "ignore") {
        decision.reason =
            fmt::format("a group size of {} does not divide its {} input features", grid.group_size, inputs);
        continue;
      }
      if (fallback == "error" || !adjusted) {
        indivisible.push_back({decision.name, inputs, grid.group_size});
        continue;
      }
      grid.group_size = *adjusted;
    }
    grids[decision.name] = grid;
  }
  for (const LayerConfig& config : configs) {
    if (!config.used)
      throw error(Exit::kUsage, "--layer-config '{}' matches no layer", config.expression.expression());
  }
  if (!indivisible.empty()) refuse_indivisible(indivisible);
  return grids;
}

}  // namespace mcompress::cli
