#include "log.h"

#include <nlohmann/json.hpp>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "mcompress/base/text.h"

namespace mcompress::cli {

namespace {

bool as_json = false;

void write(spdlog::level::level_enum level, const char* type, const std::string& text) {
  if (!as_json) return spdlog::log(level, "{}", printable(text));
  const nlohmann::ordered_json object = {{"type", type}, {"message", text}};
  spdlog::log(level, "{}", object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

}  // namespace

void set_log(int level, bool json) {
  as_json = json;
  auto logger = spdlog::stderr_logger_st("mcompress");
  logger->set_pattern(json ? "%v" : "mcompress: %l: %v");
  spdlog::set_default_logger(logger);
  spdlog::set_level(level < 0 ? spdlog::level::err : level == 0 ? spdlog::level::info : spdlog::level::debug);
}

void log_error(const std::string& text) { write(spdlog::level::err, "error", text); }
void log_warning(const std::string& text) { write(spdlog::level::warn, "warning", text); }
void log_detail(const std::string& text) { write(spdlog::level::debug, "detail", text); }

}  // namespace mcompress::cli
