#include "mcompress/base/error.h"
#include "mcompress/formats/zip.h"
#include "zip_layout.h"

namespace mcompress {

using namespace zip;

namespace {

std::string deflate_bytes(Bytes content) {
  z_stream stream{};
  if (deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, -MAX_WBITS, MAX_MEM_LEVEL, Z_DEFAULT_STRATEGY) !=
      Z_OK) {
    throw Error(Exit::kOutOfMemory, "zlib has no memory");
  }
  std::string packed(deflateBound(&stream, content.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  ::deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

// Little-endian fields appended to a record under construction.
class Fields {
 public:
  template <typename T>
  Fields& add(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Fields& add_text(const std::string& text) {
    bytes_ += text;
    return *this;
  }
  Bytes bytes() const { return std::as_bytes(std::span(bytes_)); }

 private:
  std::string bytes_;
};

constexpr uint64_t kAlignment = 64;
constexpr uint16_t kPaddingExtra = 0x4246;  // "FB", PyTorch's padding field
constexpr uint64_t kPaddingHeader = 4, kZip64LocalExtra = 20, kZip64CentralExtra = 28;

bool needs_zip64(uint64_t size, uint64_t offset) { return size >= UINT32_MAX || offset >= UINT32_MAX; }
uint16_t version_for(bool zip64) { return zip64 ? 45 : 20; }
uint32_t field32(uint64_t value, bool zip64) { return zip64 ? UINT32_MAX : static_cast<uint32_t>(value); }

// What the local and the central header of a member share, from the version to its name's length.
template <typename Record>
Fields& add_shared(Fields& header, const Record& record, bool large) {
  return header.add(version_for(large))
      .add(uint16_t{0})
      .add(record.method)
      .add(uint32_t{0})
      .add(record.crc32)
      .add(field32(record.packed, large))
      .add(field32(record.size, large))
      .add(static_cast<uint16_t>(record.name.size()));
}

}  // namespace

void ZipWriter::write(Bytes bytes) {
  sink_(bytes);
  size_bytes_ += bytes.size();
}

void ZipWriter::add(const std::string& name, Bytes content, bool deflate) {
  Record record{name, crc_of(content), kStored, content.size(), content.size(), size_bytes_};
  std::string packed;
  if (deflate) packed = deflate_bytes(content);
  if (deflate && packed.size() < content.size()) {
    record.method = kDeflate;
    record.packed = packed.size();
    content = std::as_bytes(std::span(packed));
  }
  const bool large = needs_zip64(record.size, record.offset);
  const uint64_t fixed = record.name.size() + (large ? kZip64LocalExtra : 0) + kPaddingHeader;
  const uint64_t unpadded = size_bytes_ + kLocalSize + fixed;
  const uint64_t padding = (kAlignment - unpadded % kAlignment) % kAlignment;
  Fields header;
  header.add(kLocalSignature);
  add_shared(header, record, large).add(static_cast<uint16_t>(fixed - name.size() + padding)).add_text(name);
  if (large) header.add(kZip64Extra).add<uint16_t>(16).add(record.size).add(record.packed);
  header.add(kPaddingExtra).add(static_cast<uint16_t>(padding)).add_text(std::string(padding, 'Z'));
  write(header.bytes());
  write(content);
  records_.push_back(record);
}

void ZipWriter::finish() {
  const uint64_t directory = size_bytes_;
  for (const Record& record : records_) {
    const bool large = needs_zip64(record.size, record.offset);
    Fields entry;
    entry.add(kCentralSignature).add(version_for(large));
    add_shared(entry, record, large)
        .add(static_cast<uint16_t>(large ? kZip64CentralExtra : 0))
        .add<uint16_t>(0)
        .add<uint16_t>(0)
        .add<uint16_t>(0)
        .add<uint32_t>(0)
        .add(field32(record.offset, large))
        .add_text(record.name);
    if (large)
      entry.add(kZip64Extra).add<uint16_t>(24).add(record.size).add(record.packed).add(record.offset);
    write(entry.bytes());
  }
  const uint64_t end64 = size_bytes_;
  const uint64_t size = end64 - directory;
  const auto count = static_cast<uint64_t>(records_.size());
  const bool large = count >= UINT16_MAX || needs_zip64(size, directory);
  const auto count16 = static_cast<uint16_t>(large ? UINT16_MAX : count);
  Fields end;
  if (large) {
    end.add(kEnd64Signature)
        .add<uint64_t>(kEnd64Size - 12)
        .add(version_for(large))
        .add(version_for(large))
        .add<uint32_t>(0)
        .add<uint32_t>(0)
        .add(count)
        .add(count)
        .add(size)
        .add(directory)
        .add(kLocator64Signature)
        .add<uint32_t>(0)
        .add(end64)
        .add<uint32_t>(1);
  }
  end.add(kEndSignature)
      .add<uint16_t>(0)
      .add<uint16_t>(0)
      .add(count16)
      .add(count16)
      .add(field32(size, large))
      .add(field32(directory, large))
      .add<uint16_t>(0);
  write(end.bytes());
}

}  // namespace mcompress
