#include "mcompress/base/error.h"

#include <cerrno>
#include <cstring>

namespace mcompress {

namespace {

Exit exit_for_errno(int error_number) {
  switch (error_number) {
    case ENOENT:
    case ENOTDIR: return Exit::kNoInput;
    case EACCES:
    case EPERM:
    case EROFS: return Exit::kPermission;
    case EEXIST: return Exit::kCannotCreate;
    case ENOMEM: return Exit::kOutOfMemory;
    default: return Exit::kIo;
  }
}

const char* remedy_for_errno(int error_number) {
  switch (error_number) {
    case ENOENT:
    case ENOTDIR: return "; check the path";
    case EACCES:
    case EPERM: return "; check its permissions";
    case ENOSPC: return "; make room, or write elsewhere";
    default: return "";
  }
}

}  // namespace

Error system_error(const std::string& action, int error_number) {
  return error(exit_for_errno(error_number), "{}: {}{}", action, std::strerror(error_number),
               remedy_for_errno(error_number));
}

}  // namespace mcompress
