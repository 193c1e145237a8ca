#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

// Refuses an output before any work: it is one of the run's other paths or a folder around one (73),
// it exists and `force` is not set (73), it is a folder where a file is wanted, or a device, or the
// other way round (73), it is a folder that holds something else than a model (73), its folder is
// missing (73) or not writable (77), or the disk has less than `size_bytes` left (74).
enum class OutputKind { kFile, kFolder };
void check_output(const std::string& path, OutputKind kind, bool force,
                  const std::vector<std::string>& other_paths, uint64_t size_bytes = 0);

// Whether `path` is `folder` or lies below it, symbolic links resolved.
bool is_inside(const std::string& path, const std::string& folder);

// A file that appears complete or not at all. It is written as `.NAME.mcompress-tmp` beside the
// target, locked against a second writer; commit() syncs it and renames it into place. A stub left
// by a killed run is taken over by the next one. The destructor removes what was not committed.
class OutputFile {
 public:
  OutputFile(const std::string& path, bool force);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(Bytes bytes);  // appends, stopping at a signal; throws Error(74) on a full disk
  void write_at(uint64_t offset, Bytes bytes);                 // leaves the append position as it is
  uint64_t size() const { return size_; }                      // bytes appended so far
  const std::string& temporary() const { return temporary_; }  // where it lies before commit()
  void commit();

 private:
  std::string path_, temporary_;
  bool force_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

// A folder that appears complete or not at all, built as `.NAME.mcompress-tmp` beside the target.
// An existing target is replaced only with `force`, and only in whole.
class OutputFolder {
 public:
  OutputFolder(const std::string& path, bool force);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const std::string& temporary() const { return temporary_; }  // where it lies before commit()
  std::string path_of(const std::string& name) const { return temporary_ + "/" + name; }
  void commit();

 private:
  std::string path_, temporary_;
  bool force_;
  int descriptor_ = -1;
};

}  // namespace mcompress
