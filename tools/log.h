#pragma once

#include <string>

namespace mcompress::cli {

// The log goes to stderr, one line a message: text, or a JSON object with "type" and "message".
// level -1: errors only; 0: warnings and what was done; 1: also each layer.
void set_log(int level, bool json);
void log_error(const std::string& text);
void log_warning(const std::string& text);
void log_detail(const std::string& text);

}  // namespace mcompress::cli
