#pragma once

#include <cmath>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"

namespace mcompress {

// Typed access to the keys of a config.json. A key that is null counts as absent, as in transformers.
class ConfigKeys {
 public:
  ConfigKeys(const nlohmann::json& object, std::string name) : object_(object), name_(std::move(name)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const nlohmann::json& operator[](const char* key) const { return object_[key]; }
  const std::string& name() const { return name_; }

  bool is_null(const char* key) const { return object_.contains(key) && object_[key].is_null(); }
  int64_t count(const char* key, int64_t otherwise, int64_t most = int64_t{1} << 24,
                int64_t least = 1) const {
    if (!has(key)) return otherwise;
    const nlohmann::json& value = object_[key];
    if (!value.is_number_integer() || value.get<double>() < static_cast<double>(least) ||
        value.get<double>() > static_cast<double>(most))
      throw bad_data("{}: '{}' is {}, and should be a whole number from {} to {}", name_, key, value.dump(),
                     least, most);
    return value.get<int64_t>();
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    const nlohmann::json& value = object_[key];
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>()))
      throw bad_data("{}: '{}' is {}, and should be a number above 0", name_, key, value.dump());
    return value.get<double>();
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_[key].is_boolean())
      throw bad_data("{}: '{}' is {}, and should be true or false", name_, key, object_[key].dump());
    return object_[key].get<bool>();
  }
  std::string text(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_[key].is_string())
      throw bad_data("{}: '{}' is {}, and should be a text", name_, key, object_[key].dump());
    return object_[key].get<std::string>();
  }

 private:
  const nlohmann::json& object_;
  std::string name_;
};

}  // namespace mcompress
