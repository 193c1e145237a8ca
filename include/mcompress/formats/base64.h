#pragma once

#include <optional>
#include <string>

namespace mcompress {

// RFC 4648 with padding, by OpenSSL.
std::string to_base64(const std::string& bytes);
std::optional<std::string> from_base64(const std::string& text);  // nothing where `text` is no base64

}  // namespace mcompress
