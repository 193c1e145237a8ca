#pragma once

#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "mcompress/report/report.h"

namespace mcompress {

template <typename T>
nlohmann::ordered_json or_null(const std::optional<T>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

inline nlohmann::ordered_json text_or_null(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(text);
}

// What was measured, as the report has it.
nlohmann::ordered_json share_json(const Share& share);
nlohmann::ordered_json metrics_json(const std::optional<Metrics>& metrics);
nlohmann::ordered_json comparison_json(const Report& report);

}  // namespace mcompress
