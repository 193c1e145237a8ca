#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

// Zstandard (RFC 8878) by libzstd, at one level, so that the same bytes give the same file.
inline constexpr int kZstdLevel = 3;

bool looks_like_zstd(Bytes bytes);

// Packs `bytes` into one frame that names its size and has a checksum; stops at a signal.
void pack_zstd(Bytes bytes, const std::function<void(Bytes)>& write);
uint64_t packed_zstd_bytes(Bytes bytes);

// The size that a frame names for what it holds. Throws Error(65) where it is no frame or names none; `what`
// is for messages.
uint64_t unpacked_zstd_bytes(Bytes packed, const std::string& what);

// Unpacks one frame. Throws Error(65) where it is damaged, cut, followed by other bytes, or unpacks to
// another size than it names.
void unpack_zstd(Bytes packed, const std::function<void(Bytes)>& write, const std::string& what);

}  // namespace mcompress
