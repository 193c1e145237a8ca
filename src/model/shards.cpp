#include "shards.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/checked.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

uint64_t entry_bytes(const SafetensorsWriter::Entry& entry) {
  return count_elements(entry.shape).value() * size_of(entry.dtype);
}

}  // namespace

std::vector<Shard> plan_shards(std::vector<std::vector<SafetensorsWriter::Entry>> together,
                               uint64_t shard_bytes) {
  std::vector<Shard> shards(1);
  for (auto& entries : together) {
    uint64_t bytes = 0;
    for (const auto& entry : entries) bytes += entry_bytes(entry);
    if (shards.back().bytes > 0 && shards.back().bytes + bytes > shard_bytes) shards.emplace_back();
    shards.back().bytes += bytes;
    for (auto& entry : entries) shards.back().entries.push_back(std::move(entry));
  }
  for (size_t i = 0; i < shards.size(); ++i)
    shards[i].name = shards.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  return shards;
}

std::string index_text(const std::vector<Shard>& shards) {
  if (shards.size() == 1) return "";
  using nlohmann::ordered_json;
  ordered_json map = ordered_json::object();
  uint64_t total = 0;
  for (const Shard& shard : shards) {
    for (const auto& entry : shard.entries) {
      map[entry.name] = shard.name;
      total += entry_bytes(entry);
    }
  }
  return ordered_json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n";
}

ShardWriter::ShardWriter(const std::vector<Shard>& shards, const std::map<std::string, std::string>& metadata,
                         const OutputFolder& folder) {
  for (size_t i = 0; i < shards.size(); ++i) {
    files_.push_back(std::make_unique<OutputFile>(folder.path_of(shards[i].name), true));
    writers_.emplace_back(shards[i].entries, metadata);
    writers_.back().write_header(*files_.back());
    for (const auto& entry : shards[i].entries) shard_of_[entry.name] = i;
  }
}

void ShardWriter::write(const std::string& name, uint64_t offset, const at::Tensor& values) {
  const size_t shard = shard_of_.at(name);
  writers_[shard].write(*files_[shard], name, offset, bytes_of(values));
}

void ShardWriter::commit() {
  for (const auto& file : files_) file->commit();
}

}  // namespace mcompress
