#include "mcompress/formats/zstd.h"

#include <algorithm>
#include <memory>
#include <vector>

#include <zstd.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace {

constexpr size_t kPiece = size_t{1} << 20;

void check_zstd(size_t result) {
  if (ZSTD_isError(result) != 0)
    throw error(Exit::kInternal, "internal error: zstd: {}; please report it", ZSTD_getErrorName(result));
}

}  // namespace

bool looks_like_zstd(Bytes bytes) {
  return bytes.size() >= sizeof(uint32_t) && bytes[0] == std::byte{0x28} && bytes[1] == std::byte{0xb5} &&
         bytes[2] == std::byte{0x2f} && bytes[3] == std::byte{0xfd};
}

void pack_zstd(Bytes bytes, const std::function<void(Bytes)>& write) {
  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  if (!context) throw Error(Exit::kOutOfMemory, "zstd has no memory");
  check_zstd(ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, kZstdLevel));
  check_zstd(ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1));
  check_zstd(ZSTD_CCtx_setPledgedSrcSize(context.get(), bytes.size()));
  std::vector<std::byte> buffer(ZSTD_CStreamOutSize());
  size_t at = 0;
  size_t left = 1;
  while (left != 0) {
    check_interrupt();
    const size_t size = std::min(kPiece, bytes.size() - at);
    const bool last = at + size == bytes.size();
    ZSTD_inBuffer input{bytes.data() + at, size, 0};
    do {
      ZSTD_outBuffer output{buffer.data(), buffer.size(), 0};
      left = ZSTD_compressStream2(context.get(), &output, &input, last ? ZSTD_e_end : ZSTD_e_continue);
      check_zstd(left);
      write(Bytes(buffer).first(output.pos));
    } while (input.pos < input.size);
    at += size;
    if (!last) left = 1;
  }
}

uint64_t packed_zstd_bytes(Bytes bytes) {
  uint64_t size = 0;
  pack_zstd(bytes, [&size](Bytes part) { size += part.size(); });
  return size;
}

uint64_t unpacked_zstd_bytes(Bytes packed, const std::string& what) {
  const unsigned long long size = ZSTD_getFrameContentSize(packed.data(), packed.size());
  if (!looks_like_zstd(packed) || size == ZSTD_CONTENTSIZE_ERROR) throw bad_data("{} is no zstd frame", what);
  if (size == ZSTD_CONTENTSIZE_UNKNOWN)
    throw bad_data("{} does not name its unpacked size; unpack it with 'zstd -d'", what);
  return size;
}

void unpack_zstd(Bytes packed, const std::function<void(Bytes)>& write, const std::string& what) {
  const uint64_t size = unpacked_zstd_bytes(packed, what);
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(), ZSTD_freeDCtx);
  if (!context) throw Error(Exit::kOutOfMemory, "zstd has no memory");
  constexpr int kMaxWindowLog = 27;  // 128 MiB
  check_zstd(ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kMaxWindowLog));
  std::vector<std::byte> buffer(ZSTD_DStreamOutSize());
  ZSTD_inBuffer input{packed.data(), packed.size(), 0};
  size_t expected = 1;
  uint64_t written = 0;
  while (expected != 0) {
    check_interrupt();
    ZSTD_outBuffer output{buffer.data(), buffer.size(), 0};
    expected = ZSTD_decompressStream(context.get(), &output, &input);
    if (ZSTD_isError(expected) != 0) throw bad_data("{} is damaged: {}", what, ZSTD_getErrorName(expected));
    written += output.pos;
    if (written > size) throw bad_data("{} is damaged: it unpacks to more than it names", what);
    write(Bytes(buffer).first(output.pos));
    if (expected != 0 && output.pos == 0 && input.pos == input.size) throw bad_data("{} is cut", what);
  }
  if (input.pos != input.size)
    throw bad_data("{} is followed by {} other bytes", what, input.size - input.pos);
}

}  // namespace mcompress
