#pragma once

#include <string>
#include <string_view>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

// `text` fit for a terminal: control characters, which names in a hostile file may hold, become \xNN.
// kLines leaves line ends.
enum class Printable { kOneLine, kLines };
std::string printable(std::string_view text, Printable kind = Printable::kOneLine);

// Bytes as text.
inline std::string_view text_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Writes to stderr; where that fails there is nobody to tell.
void write_stderr(const std::string& text);

}  // namespace mcompress
