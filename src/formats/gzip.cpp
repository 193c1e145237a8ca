#include "mcompress/formats/gzip.h"

#include <algorithm>
#include <memory>

#include <zlib.h>

#include "mcompress/base/error.h"

namespace mcompress {

bool looks_like_gzip(Bytes bytes) {
  return bytes.size() > 2 && bytes[0] == std::byte{0x1f} && bytes[1] == std::byte{0x8b};
}

std::string gunzip(Bytes bytes, const std::string& path) {
  constexpr size_t kMaxRatio = 100, kPiece = size_t{1} << 20;
  constexpr int kGzipWindow = MAX_WBITS + 16;
  z_stream stream{};
  if (inflateInit2(&stream, kGzipWindow) != Z_OK) throw Error(Exit::kOutOfMemory, "zlib has no memory");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> owner(&stream,
                                                            [](z_stream* s) { return inflateEnd(s); });
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(std::min<size_t>(bytes.size(), UINT32_MAX));
  std::string content;
  int result = Z_OK;
  while (result == Z_OK) {
    const size_t done = content.size();
    if (done > bytes.size() * kMaxRatio) {
      throw bad_data("gzip file '{}' unpacks to more than {} times its size", path, kMaxRatio);
    }
    content.resize(done + kPiece);
    stream.next_out = reinterpret_cast<Bytef*>(content.data() + done);
    stream.avail_out = kPiece;
    result = ::inflate(&stream, Z_NO_FLUSH);
    content.resize(done + kPiece - stream.avail_out);
    if (result == Z_OK && stream.avail_in == 0 && stream.avail_out > 0) break;
  }
  if (result != Z_STREAM_END) throw bad_data("gzip file '{}' is cut or damaged", path);
  return content;
}

}  // namespace mcompress
