#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/base/output.h"
#include "mcompress/formats/safetensors.h"

namespace mcompress {

// One file of a folder's tensors.
struct Shard {
  std::string name;
  std::vector<SafetensorsWriter::Entry> entries;
  uint64_t bytes = 0;
};

// Tensors in their order in one model.safetensors, or in shards of at most so many bytes, of which each holds
// those that belong together whole.
std::vector<Shard> plan_shards(std::vector<std::vector<SafetensorsWriter::Entry>> together,
                               uint64_t shard_bytes);
std::string index_text(const std::vector<Shard>& shards);  // empty where there is but one

// The files of an output while they are written.
class ShardWriter {
 public:
  ShardWriter(const std::vector<Shard>& shards, const std::map<std::string, std::string>& metadata,
              const OutputFolder& folder);

  void write(const std::string& name, uint64_t offset, const at::Tensor& values);
  void commit();

 private:
  std::vector<std::unique_ptr<OutputFile>> files_;
  std::vector<SafetensorsWriter> writers_;
  std::map<std::string, size_t> shard_of_;
};

}  // namespace mcompress
