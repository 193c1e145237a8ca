#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "mcompress/base/output.h"

namespace mcompress {

struct ZipEntry {
  std::string name;
  uint32_t crc32 = 0;                  // 0: not computed by the writer
  bool deflated = false;               // otherwise stored
  Bytes data;                          // as it lies in the file
  uint64_t size_bytes = 0;             // unpacked
  uint64_t header = 0, directory = 0;  // offsets of its two headers
};

bool looks_like_zip(Bytes bytes);

// The entries of a zip (and zip64) archive, by its central directory. Refuses (65) what two readers
// could understand differently or what asks for more memory than the file justifies: several
// disks, encryption, methods but stored and deflate, duplicate names, overlapping members, local
// headers that differ from the directory, names with '..', '\\' or a leading '/', a member that
// unpacks to more than 100 times its size, and more than 4 times the file (+ 16 MiB) in all.
std::vector<ZipEntry> read_zip(Bytes bytes, const std::string& path);

// The unpacked content of an entry, CRC checked. read_zip's limits bound the memory.
std::string unpack(const ZipEntry& entry, const std::string& path);

// Offsets of the places in the file that hold the CRC of an entry.
std::vector<uint64_t> crc_places(Bytes bytes, const ZipEntry& entry);

// Checks the CRC of every entry that has one; the damaged member is named (65).
void check_crcs(const std::vector<ZipEntry>& entries, const std::string& path);

// Writes a zip as PyTorch does: each member's data begins at a multiple of 64 bytes, no times.
// Members of `deflate` are packed where that makes them smaller.
class ZipWriter {
 public:
  using Sink = std::function<void(Bytes)>;  // takes the file's bytes in order
  explicit ZipWriter(Sink sink) : sink_(std::move(sink)) {}
  explicit ZipWriter(OutputFile& file) : ZipWriter([&file](Bytes bytes) { file.write(bytes); }) {}
  void add(const std::string& name, Bytes content, bool deflate);
  void finish();  // the central directory
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  struct Record {
    std::string name;
    uint32_t crc32;
    uint16_t method;
    uint64_t packed, size, offset;
  };

  void write(Bytes bytes);

  Sink sink_;
  uint64_t size_bytes_ = 0;
  std::vector<Record> records_;
};

}  // namespace mcompress
