#pragma once

#include <cstdint>

#include <zlib.h>

#include "mcompress/base/mapped_file.h"

namespace mcompress::zip {

// APPNOTE.TXT of PKWARE: signatures, sizes of the fixed parts, and the methods that we know.
inline constexpr uint32_t kLocalSignature = 0x04034b50, kCentralSignature = 0x02014b50;
inline constexpr uint32_t kEndSignature = 0x06054b50, kEnd64Signature = 0x06064b50;
inline constexpr uint32_t kLocator64Signature = 0x07064b50;
inline constexpr uint32_t kDescriptorSignature = 0x08074b50;
inline constexpr uint64_t kLocalCrc = 14, kCentralCrc = 16;  // inside their headers
inline constexpr uint64_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kEnd64Size = 56,
                          kLocatorSize = 20;
inline constexpr uint16_t kStored = 0, kDeflate = 8, kZip64Extra = 1;

inline uint32_t crc_of(Bytes bytes) {
  return static_cast<uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

}  // namespace mcompress::zip
