#include "mcompress/formats/zip.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "zip_layout.h"

namespace mcompress {

using namespace zip;

namespace {

constexpr uint64_t kMaxRatio = 100, kMaxEntries = 1'000'000;
constexpr uint64_t kMaxExpansion = 4, kExpansionFloor = uint64_t{16} << 20;

// Little-endian numbers at an offset that the caller has checked.
template <typename T>
T read_number(Bytes bytes, uint64_t offset) {
  T value{};
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

struct Directory {
  uint64_t entries, offset, size;
};

Directory find_directory(Bytes bytes, const std::string& path) {
  constexpr uint64_t kMaxComment = 65535;
  if (bytes.size() < kEndSize) throw bad_data("zip '{}' has only {} bytes", path, bytes.size());
  const uint64_t lowest = bytes.size() > kEndSize + kMaxComment ? bytes.size() - kEndSize - kMaxComment : 0;
  std::optional<uint64_t> end;
  for (uint64_t at = bytes.size() - kEndSize + 1; at-- > lowest && !end;) {
    if (read_number<uint32_t>(bytes, at) == kEndSignature) end = at;
  }
  if (!end) throw bad_data("zip '{}' has no central directory: the file is cut or damaged", path);
  if (read_number<uint16_t>(bytes, *end + 4) != 0) throw bad_data("zip '{}' spans several disks", path);
  Directory directory{read_number<uint16_t>(bytes, *end + 10), read_number<uint32_t>(bytes, *end + 16),
                      read_number<uint32_t>(bytes, *end + 12)};
  if (*end >= kLocatorSize && read_number<uint32_t>(bytes, *end - kLocatorSize) == kLocator64Signature) {
    const auto at = read_number<uint64_t>(bytes, *end - kLocatorSize + 8);
    if (!fits(at, kEnd64Size, bytes.size()) || read_number<uint32_t>(bytes, at) != kEnd64Signature) {
      throw bad_data("zip '{}' has a damaged zip64 directory record", path);
    }
    directory = {read_number<uint64_t>(bytes, at + 32), read_number<uint64_t>(bytes, at + 48),
                 read_number<uint64_t>(bytes, at + 40)};
  }
  if (!fits(directory.offset, directory.size, bytes.size()) ||
      directory.entries > directory.size / kCentralSize || directory.entries > kMaxEntries) {
    throw bad_data("zip '{}' has a central directory that does not fit the file", path);
  }
  return directory;
}

// Replaces the fields of 0xffffffff by those of the zip64 extra field.
void apply_zip64(Bytes extra, uint64_t& size, uint64_t& packed, uint64_t& offset, const std::string& what) {
  uint64_t at = 0;
  while (fits(at, 4, extra.size())) {
    const auto id = read_number<uint16_t>(extra, at);
    const auto length = read_number<uint16_t>(extra, at + 2);
    if (!fits(at + 4, length, extra.size())) break;
    if (id == kZip64Extra) {
      uint64_t field = at + 4;
      for (uint64_t* value : {&size, &packed, &offset}) {
        if (*value != UINT32_MAX) continue;
        if (field + 8 > at + 4 + length) throw bad_data("{} has a short zip64 field", what);
        *value = read_number<uint64_t>(extra, field);
        field += 8;
      }
      return;
    }
    at += 4 + length;
  }
}

void check_name(const std::string& name, const std::string& path) {
  const bool bad = name.empty() || name.front() == '/' || name.find('\\') != std::string::npos ||
                   name.find('\0') != std::string::npos ||
                   ("/" + name + "/").find("/../") != std::string::npos;
  if (bad) throw bad_data("zip '{}' has a member with the unsafe name '{}'", path, name);
}

struct Placed {
  ZipEntry entry;
  uint64_t begin, end;  // local header and data in the file
};

// The entry at `at` of the central directory, which moves behind it.
Placed read_entry(Bytes bytes, uint64_t& at, uint64_t directory_end, const std::string& path) {
  if (!fits(at, kCentralSize, directory_end) || read_number<uint32_t>(bytes, at) != kCentralSignature) {
    throw bad_data("zip '{}' has a damaged central directory", path);
  }
  const auto flags = read_number<uint16_t>(bytes, at + 8);
  const auto method = read_number<uint16_t>(bytes, at + 10);
  const auto name_size = read_number<uint16_t>(bytes, at + 28);
  const auto extra_size = read_number<uint16_t>(bytes, at + 30);
  const auto comment_size = read_number<uint16_t>(bytes, at + 32);
  const uint64_t variable = uint64_t{name_size} + extra_size + comment_size;
  if (!fits(at + kCentralSize, variable, directory_end)) {
    throw bad_data("zip '{}' has a damaged central directory", path);
  }
  Placed placed{};
  ZipEntry& entry = placed.entry;
  entry.name.assign(reinterpret_cast<const char*>(bytes.data()) + at + kCentralSize, name_size);
  check_name(entry.name, path);
  const std::string what = fmt::format("member '{}' of '{}'", entry.name, path);
  entry.directory = at;
  entry.crc32 = read_number<uint32_t>(bytes, at + kCentralCrc);
  uint64_t packed = read_number<uint32_t>(bytes, at + 20);
  uint64_t local = read_number<uint32_t>(bytes, at + 42);
  entry.size_bytes = read_number<uint32_t>(bytes, at + 24);
  apply_zip64(bytes.subspan(at + kCentralSize + name_size, extra_size), entry.size_bytes, packed, local,
              what);
  at += kCentralSize + variable;

  if ((flags & 1U) != 0) throw bad_data("{} is encrypted", what);
  if (method != kStored && method != kDeflate) throw bad_data("{} uses the unknown method {}", what, method);
  entry.deflated = method == kDeflate;
  if (!fits(local, kLocalSize, bytes.size()) || read_number<uint32_t>(bytes, local) != kLocalSignature) {
    throw bad_data("{} has no local header", what);
  }
  const auto local_name_size = read_number<uint16_t>(bytes, local + 26);
  const uint64_t data = local + kLocalSize + local_name_size + read_number<uint16_t>(bytes, local + 28);
  if (!fits(data, packed, bytes.size())) throw bad_data("{} reaches beyond the end of the file", what);
  if (local_name_size != name_size || read_number<uint16_t>(bytes, local + 8) != method ||
      std::memcmp(bytes.data() + local + kLocalSize, entry.name.data(), name_size) != 0) {
    throw bad_data("{} has a local header that differs from the directory", what);
  }
  if (!entry.deflated && packed != entry.size_bytes) throw bad_data("{} is stored with two sizes", what);
  if (entry.size_bytes / kMaxRatio > packed) {
    throw bad_data("{} unpacks to {} bytes from {}; at most {} times is allowed", what, entry.size_bytes,
                   packed, kMaxRatio);
  }
  entry.data = bytes.subspan(data, packed);
  entry.header = local;
  placed.begin = local;
  placed.end = data + packed;
  return placed;
}

std::string inflate_entry(const ZipEntry& entry, const std::string& what) {
  std::string content(entry.size_bytes, '\0');
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw Error(Exit::kOutOfMemory, "zlib has no memory");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(entry.data.data()));
  stream.avail_in = static_cast<uInt>(entry.data.size());
  stream.next_out = reinterpret_cast<Bytef*>(content.data());
  stream.avail_out = static_cast<uInt>(content.size());
  const int result = ::inflate(&stream, Z_FINISH);
  const uint64_t written = stream.total_out;
  inflateEnd(&stream);
  if (result != Z_STREAM_END || written != entry.size_bytes) throw bad_data("{} is damaged", what);
  return content;
}

}  // namespace

bool looks_like_zip(Bytes bytes) {
  if (bytes.size() < 4) return false;
  const auto signature = read_number<uint32_t>(bytes, 0);
  return signature == kLocalSignature || signature == kEndSignature;
}

std::vector<ZipEntry> read_zip(Bytes bytes, const std::string& path) {
  const Directory directory = find_directory(bytes, path);
  std::vector<Placed> placed;
  uint64_t at = directory.offset;
  uint64_t total = 0;
  std::set<std::string> names;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    placed.push_back(read_entry(bytes, at, directory.offset + directory.size, path));
    const ZipEntry& entry = placed.back().entry;
    if (!names.insert(entry.name).second) throw bad_data("zip '{}' has two members '{}'", path, entry.name);
    total += entry.size_bytes;
    if (total > bytes.size() * kMaxExpansion + kExpansionFloor) {
      throw bad_data("zip '{}' unpacks to more than {} times its size", path, kMaxExpansion);
    }
  }
  std::vector<ZipEntry> entries;
  entries.reserve(placed.size());
  for (const Placed& item : placed) entries.push_back(item.entry);
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
  uint64_t end = 0;
  for (const Placed& item : placed) {
    if (item.begin < end || item.end > directory.offset) {
      throw bad_data("member '{}' of '{}' overlaps another part of the file", item.entry.name, path);
    }
    end = item.end;
  }
  return entries;
}

std::string unpack(const ZipEntry& entry, const std::string& path) {
  const std::string what = fmt::format("member '{}' of '{}'", entry.name, path);
  std::string content =
      entry.deflated ? inflate_entry(entry, what)
                     : std::string(reinterpret_cast<const char*>(entry.data.data()), entry.data.size());
  if (entry.crc32 != 0 && crc_of(std::as_bytes(std::span(content))) != entry.crc32) {
    throw bad_data("{} is damaged: its CRC does not match", what);
  }
  return content;
}

std::vector<uint64_t> crc_places(Bytes bytes, const ZipEntry& entry) {
  constexpr uint16_t kDescriptorFollows = 8;
  std::vector<uint64_t> places = {entry.directory + kCentralCrc};
  if ((read_number<uint16_t>(bytes, entry.header + 6) & kDescriptorFollows) == 0) {
    places.push_back(entry.header + kLocalCrc);
    return places;
  }
  // The descriptor's signature may be left out.
  uint64_t at = static_cast<uint64_t>(entry.data.data() - bytes.data()) + entry.data.size();
  if (fits(at, 4, bytes.size()) && read_number<uint32_t>(bytes, at) == kDescriptorSignature) at += 4;
  if (fits(at, 4, bytes.size()) && read_number<uint32_t>(bytes, at) == entry.crc32) places.push_back(at);
  if (read_number<uint32_t>(bytes, entry.header + kLocalCrc) == entry.crc32)
    places.push_back(entry.header + kLocalCrc);
  return places;
}

void check_crcs(const std::vector<ZipEntry>& entries, const std::string& path) {
  for (const ZipEntry& entry : entries) {
    if (entry.deflated) {
      unpack(entry, path);
    } else if (entry.crc32 != 0 && crc_of(entry.data) != entry.crc32) {
      throw bad_data("member '{}' of '{}' is damaged: its CRC does not match", entry.name, path);
    }
  }
}

}  // namespace mcompress
