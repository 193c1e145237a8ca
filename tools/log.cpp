#include "log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace mcompress::cli {

void set_log_level(int level) {
  auto logger = spdlog::stderr_logger_st("mcompress");
  logger->set_pattern("mcompress: %l: %v");
  spdlog::set_default_logger(logger);
  spdlog::set_level(level < 0 ? spdlog::level::err : level == 0 ? spdlog::level::info : spdlog::level::debug);
}

void log_warning(const std::string& text) { spdlog::warn("{}", text); }
void log_info(const std::string& text) { spdlog::info("{}", text); }
void log_detail(const std::string& text) { spdlog::debug("{}", text); }

}  // namespace mcompress::cli
