#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "mcompress/methods/group_grid.h"
#include "mcompress/methods/plan.h"
#include "mcompress/model/packed_layer.h"

namespace mcompress::cli {

constexpr const char* kTorchScriptFormat = "torchscript";  // --format of programs

constexpr int64_t kLargestGroup = int64_t{1} << 24;

// The settings of every command that rounds weights in groups.
struct GroupOptions {
  int64_t bits = 4, group_size = 128;
  int64_t embedding_bits = 0;  // 0: embeddings are left alone
  std::string group_size_fallback = "error";
  bool symmetric = true, search = true, head = false;
  std::vector<std::string> layer_configs;  // "RE=bits:8,group:64"
  std::string format;  // as given; empty: of a folder the next, of TorchScript torchscript
  std::string folder_format = "gptq";
  uint64_t shard_bytes = 5'000'000'000;
};
void add_group_options(CLI::App& app, GroupOptions& options, const std::string& group);
constexpr const char* kEmbeddingsHelp =
    "Round embeddings to nearest too: to 8 bits with --format compressed-tensors or safetensors, 8 or "
    "4 with dequantized";
CLI::Option* add_embeddings_option(CLI::App& app, int64_t& bits, const std::string& help);
CLI::Option* add_shard_option(CLI::App& app, uint64_t& bytes);

// Refuses (2) any of them, which go with something else.
void refuse_group_options(const GroupOptions& options, const std::string& what);

// What folders of packed weights are in; none for plain ones ("dequantized").
std::optional<PackedForm> form_of(const std::string& format, bool symmetric);
std::optional<PackedForm> form_of(const GroupOptions& options);
const std::string& folder_format(const GroupOptions& options);

// A layer that may be rounded.
struct GroupedLayer {
  std::string name;
  int64_t outputs = 0, inputs = 0;
  bool embedding = false;
};

// The grid of each layer that `plan` chose, by name: bits and group size of the command, of the last
// --layer-config that names the layer, and what --group-size-fallback makes of a size that does not divide
// its inputs. Layers that it leaves alone get their reason in the plan. Throws Error(2) naming every layer
// that does not divide where the fallback is "error", and an expression that matches no layer.
std::map<std::string, GroupGrid> choose_grids(const GroupOptions& options,
                                              const std::vector<GroupedLayer>& layers,
                                              std::vector<Decision>& plan);

}  // namespace mcompress::cli
