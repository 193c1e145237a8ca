#include "log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "mcompress/base/text.h"

namespace mcompress::cli {

void set_log_level(int level) {
  auto logger = spdlog::stderr_logger_st("mcompress");
  logger->set_pattern("mcompress: %l: %v");
  spdlog::set_default_logger(logger);
  spdlog::set_level(level < 0 ? spdlog::level::err : level == 0 ? spdlog::level::info : spdlog::level::debug);
}

void log_warning(const std::string& text) { spdlog::warn("{}", printable(text)); }
void log_info(const std::string& text) { spdlog::info("{}", printable(text)); }
void log_detail(const std::string& text) { spdlog::debug("{}", printable(text)); }

}  // namespace mcompress::cli
