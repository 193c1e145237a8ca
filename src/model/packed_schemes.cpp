#include "packed_schemes.h"

#include <algorithm>
#include <utility>

#include "mcompress/model/checkpoint.h"

namespace mcompress {

namespace {

using Json = nlohmann::ordered_json;

// As readers match names: at their start.
Pattern from_start(const std::string& expression) { return Pattern("^(?:" + expression + ")"); }

int64_t number(const Json& object, const char* key, int64_t otherwise = 0) {
  const Json value = object.value(key, Json());
  return value.is_number_integer() ? value.get<int64_t>() : otherwise;
}

// The texts of a list; of a list of lists those of all.
std::vector<std::string> texts_in(const Json& list) {
  std::vector<std::string> texts;
  for (const Json& entry : list) {
    if (entry.is_string()) texts.push_back(entry.get<std::string>());
    if (!entry.is_array()) continue;
    for (const std::string& text : texts_in(entry)) texts.push_back(text);
  }
  return texts;
}

}  // namespace

PackedSchemes::PackedSchemes(PackedForm form, Json quantization)
    : form_(form), quantization_(std::move(quantization)) {
  const auto list = [&](const char* key) { return texts_in(quantization_.value(key, Json())); };
  const auto name = [](const std::string& text) -> Name {
    if (!text.starts_with("re:")) return {text};
    return {text, from_start(text.substr(3))};
  };
  if (is_compressed_tensors(form_)) {
    for (const std::string& text : list("ignore")) ignored_.push_back(name(text));
    for (const Json& group : quantization_.at("config_groups")) {
      groups_.push_back({{}, group.at("weights")});
      for (const std::string& text : texts_in(group.value("targets", Json())))
        groups_.back().targets.push_back(name(text));
    }
    return;
  }
  const Json dynamic = quantization_.value("dynamic", Json());
  if (dynamic.is_object()) {
    for (const auto& [key, change] : dynamic.items()) {
      const bool marked = key.starts_with("+:") || key.starts_with("-:");
      overrides_.push_back({from_start(marked ? key.substr(2) : key), key.starts_with("-:"), change});
    }
  }
  if (form_ == PackedForm::kAwq) {
    for (const std::string& text : list("modules_to_not_convert"))
      kept_.push_back({text, Pattern("^(?:" + text + R"()(?:(?<=\.)|(?=\.|$)))")});
  } else {
    taken_ends_ = list("modules_in_block_to_quantize");
  }
}

LayerScheme PackedSchemes::of(const std::string& layer) const {
  if (is_compressed_tensors(form_)) {
    const Group* group = group_of(layer);
    if (group == nullptr) return {};
    const Json order = group->weights.value("actorder", Json());
    return {number(group->weights, "num_bits"),
            std::max<int64_t>(-1, number(group->weights, "group_size", -1)),
            group->weights.value("symmetric", Json(true)) != false, order == "group" || order == "dynamic"};
  }
  Json scheme = quantization_;
  const Override* change = override_of(layer);
  if (change != nullptr && change->change.is_object()) scheme.update(change->change);
  if (form_ == PackedForm::kAwq)  // as AutoAWQ first named them, or as it does now
    return {number(scheme, "bits", number(scheme, "w_bit")),
            number(scheme, "group_size", number(scheme, "q_group_size")),
            scheme.value("zero_point", Json(true)) == false, false};
  return {number(scheme, "bits"), number(scheme, "group_size"), scheme.value("sym", Json(true)) == true,
          scheme.value("desc_act", Json(false)) == true};
}

bool PackedSchemes::Name::is(const std::string& layer) const {
  return text == layer || (expression && expression->matches(layer));
}

bool PackedSchemes::Group::names(const std::string& layer) const {
  return std::any_of(targets.begin(), targets.end(), [&](const Name& name) { return name.is(layer); });
}

// The first of the file that matches.
const PackedSchemes::Override* PackedSchemes::override_of(const std::string& layer) const {
  const auto found = std::find_if(overrides_.begin(), overrides_.end(),
                                  [&](const Override& rule) { return rule.expression.matches(layer); });
  return found == overrides_.end() ? nullptr : &*found;
}

// What names the layer goes before what names its class.
const PackedSchemes::Group* PackedSchemes::group_of(const std::string& layer) const {
  const char* kind = is_embedding(layer + ".weight") ? "Embedding" : "Linear";
  const Group* of_class = nullptr;
  for (const Group& group : groups_) {
    if (group.names(layer)) return &group;
    if (group.names(kind)) of_class = &group;
  }
  return of_class;
}

bool PackedSchemes::takes_every_linear() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const Group& group) { return group.names("Linear"); });
}

PackedSchemes::Readers PackedSchemes::left_alone(const std::string& layer) const {
  const Override* rule = override_of(layer);
  if (rule != nullptr && rule->leaves_out) return {true, true};
  const auto any_of = [](const auto& list, const auto& matches) {
    return std::any_of(list.begin(), list.end(), matches);
  };
  if (form_ == PackedForm::kAwq) {
    const bool by_transformers =
        any_of(kept_, [&](const Name& name) { return name.is(layer) || layer.ends_with(name.text); });
    const bool by_autoawq =
        any_of(kept_, [&](const Name& name) { return layer.find(name.text) != std::string::npos; });
    return {by_transformers && by_autoawq, by_transformers || by_autoawq};
  }
  const bool left = any_of(ignored_, [&](const Name& name) { return name.is(layer); }) ||
                    (!taken_ends_.empty() &&
                     !any_of(taken_ends_, [&](const std::string& end) { return layer.ends_with(end); }));
  return {left, left};
}

}  // namespace mcompress
