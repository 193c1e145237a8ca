#pragma once

#include <string>
#include <string_view>

namespace mcompress {

// `text` fit for a terminal: control characters, which names in a hostile file may hold, become \xNN.
// kLines leaves line ends.
enum class Printable { kOneLine, kLines };
std::string printable(std::string_view text, Printable kind = Printable::kOneLine);

}  // namespace mcompress
