#pragma once

#include <string>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

bool looks_like_gzip(Bytes bytes);

// The unpacked content. Refuses (65) damaged files and content beyond 100 times the file's size.
std::string gunzip(Bytes bytes, const std::string& path);

}  // namespace mcompress
