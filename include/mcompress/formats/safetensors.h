#pragma once

#include <map>
#include <string>
#include <vector>

#include "mcompress/base/output.h"
#include "mcompress/formats/array.h"

namespace mcompress {

// safetensors: u64 header size, JSON header, data (github.com/huggingface/safetensors).
struct SafetensorsFile {
  std::vector<Array> arrays;  // in the order of their data
  std::map<std::string, std::string> metadata;
};

// True where the first bytes look like a safetensors header: a small size, then '{'.
bool looks_like_safetensors(Bytes bytes);

// Reads the header and checks everything the reference reader checks, and duplicate names too.
// Throws Error(65) naming the tensor. `path` is for messages.
SafetensorsFile read_safetensors(Bytes bytes, const std::string& path);

// Writes a safetensors file whose arrays are announced first and streamed after, so that no array
// needs to be held whole. Arrays lie in the order of announcement by falling element size, then
// name; the header is padded so that every array is aligned to its element.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
  };

  SafetensorsWriter(std::vector<Entry> entries, std::map<std::string, std::string> metadata);

  uint64_t file_bytes() const { return header_.size() + data_bytes_; }
  void write_header(OutputFile& file) const;
  // Puts `bytes` at `offset` bytes into the array `name`.
  void write(OutputFile& file, const std::string& name, uint64_t offset, Bytes bytes) const;

 private:
  std::string header_;  // with its size in front
  uint64_t data_bytes_ = 0;
  std::map<std::string, uint64_t> offsets_;  // of each array in the file
};

}  // namespace mcompress
