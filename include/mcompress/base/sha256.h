#pragma once

#include <stop_token>
#include <string>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

// SHA-256 of a file as 64 lower-case hex digits, read through the map in pieces that are dropped
// again, so that hashing costs no memory. A hash that is told to stop is empty.
std::string sha256_of_file(const MappedFile& file, const std::stop_token& stop = {});

std::string sha256_of(Bytes bytes);

// SHA-256 of a file, or of a folder: the hash over its files' names and hashes, sorted by name.
std::string sha256_of_path(const std::string& path, const std::stop_token& stop = {});

}  // namespace mcompress
