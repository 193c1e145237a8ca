#pragma once

#include <string>

namespace mcompress::cli {

// The log goes to stderr. -1: errors only; 0: warnings and what was done; 1: also each layer.
void set_log_level(int level);
void log_warning(const std::string& text);
void log_info(const std::string& text);
void log_detail(const std::string& text);

}  // namespace mcompress::cli
