#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace mcompress {

using Bytes = std::span<const std::byte>;

// A whole regular file mapped read-only. Throws Error where it is missing (66), unreadable (77), a
// folder or special file (65), or cannot be mapped (74). Never blocks on a FIFO.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  Bytes bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

  // Gives the pages of `part` back to the system; reading them again maps them again. Bytes
  // of other memory are left alone.
  void drop(Bytes part) const;

 private:
  std::string path_;
  Bytes bytes_;
};

using SharedFile = std::shared_ptr<const MappedFile>;

}  // namespace mcompress
