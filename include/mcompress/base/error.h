#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "mcompress/base/text.h"

namespace mcompress {

// The exit codes that scripts rely on; a run ended by signal n exits with 128 + n.
enum class Exit : int {
  kDone = 0,
  kUsage = 2,         // wrong command line
  kGateFailed = 3,    // done, but a quality gate failed
  kPartlyFailed = 4,  // a batch of which some failed
  kBadData = 65,      // a model or data file is malformed
  kNoInput = 66,      // an input does not exist
  kInternal = 70,     // a broken promise of our own
  kOutOfMemory = 71,
  kCannotCreate = 73,  // an output exists or cannot be made
  kIo = 74,            // reading or writing failed, disk full
  kResumable = 75,     // stopped, can be resumed
  kPermission = 77,
  kConfig = 78,  // a recipe or configuration file is wrong
};

// A failure the user can act on. The text names the thing, what it was, what is allowed and what
// to do, in lower case and without a full stop. Control characters in it are made visible.
class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& message)
      : std::runtime_error(printable(message, Printable::kLines)), code_(code) {}
  Exit code() const { return code_; }

 private:
  Exit code_;
};

// Error with a formatted message.
template <typename... Args>
Error error(Exit code, fmt::format_string<Args...> format, Args&&... args) {
  return Error(code, fmt::format(format, std::forward<Args>(args)...));
}

// Error(kBadData): a model or data file breaks its format.
template <typename... Args>
Error bad_data(fmt::format_string<Args...> format, Args&&... args) {
  return Error(Exit::kBadData, fmt::format(format, std::forward<Args>(args)...));
}

// Error for the failed system call of `action` ("cannot read 'x'"), its code chosen by errno:
// missing 66, permission 77, exists 73, out of memory 71, anything else 74.
Error system_error(const std::string& action, int error_number);

}  // namespace mcompress
