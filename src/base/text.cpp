#include "mcompress/base/text.h"

#include <cstdio>

#include <fmt/format.h>

namespace mcompress {

std::string printable(std::string_view text, Printable kind) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // U+0080 to U+009F, as UTF-8 writes them, are control characters too.
    const bool high = byte == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    const bool line_end = byte == '\n' && kind == Printable::kLines;
    if ((byte < 0x20 && !line_end) || byte == 0x7f || high) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += text[i];
    }
  }
  return result;
}

void write_stderr(const std::string& text) { std::fputs(text.c_str(), stderr); }

}  // namespace mcompress
