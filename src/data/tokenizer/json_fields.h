#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"

namespace mcompress {

// Typed access to the members of a tokenizer.json; what has another type throws Error(65) naming the file.
class JsonFields {
 public:
  explicit JsonFields(std::string name) : name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  Error fault(const std::string& what) const { return bad_data("{}: {}", name_, what); }

  // null where it is missing.
  static const nlohmann::json& member(const nlohmann::json& object, const char* key) {
    static const nlohmann::json kNull;
    return object.is_object() && object.contains(key) ? object[key] : kNull;
  }
  std::string text(const nlohmann::json& object, const char* key, const char* what) const {
    const nlohmann::json& value = member(object, key);
    if (!value.is_string()) throw fault(fmt::format("{} lacks the text '{}'", what, key));
    return value.get<std::string>();
  }
  std::string type_of(const nlohmann::json& step, const char* what) const { return text(step, "type", what); }
  bool flag(const nlohmann::json& object, const char* key, bool otherwise) const {
    const nlohmann::json& value = member(object, key);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) throw fault(fmt::format("'{}' is not true or false", key));
    return value.get<bool>();
  }
  int32_t id(const nlohmann::json& value, const std::string& token) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > std::numeric_limits<int32_t>::max())
      throw fault(fmt::format("the id of token '{}' is not a number from 0 to 2^31 - 1", token));
    return value.get<int32_t>();
  }
  const nlohmann::json& list(const nlohmann::json& object, const char* key, const char* what) const {
    const nlohmann::json& value = member(object, key);
    if (!value.is_array()) throw fault(fmt::format("{} lacks the list '{}'", what, key));
    return value;
  }

 private:
  std::string name_;
};

}  // namespace mcompress
