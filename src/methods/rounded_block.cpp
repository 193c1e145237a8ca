#include "rounded_block.h"

#include <filesystem>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "state_file.h"

namespace mcompress {

namespace {

using nlohmann::json;

std::string file_of(const std::string& folder, int64_t block) {
  return fmt::format("{}/block-{:05}.safetensors", folder, block);
}

// Infinite where nothing was lost, which JSON cannot tell.
json number(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }
double number(const json& value) {
  return value.is_null() ? std::numeric_limits<double>::infinity() : value.get<double>();
}

json record_of(const RoundedLayer& layer) {
  return {{"name", layer.name},
          {"bits", layer.weight.bits},
          {"rows", layer.weight.codes.size(0)},
          {"loss", number(layer.loss)},
          {"rounded_loss", number(layer.rounded_loss)},
          {"damping", layer.damping},
          {"sqnr_db", number(layer.sqnr_db)},
          {"max_error", layer.max_error},
          {"seconds", layer.seconds},
          {"dead_channels", layer.dead_channels},
          {"rounded", layer.rounded}};
}

// The content is right where its hash is, so that what is missing or odd is a mistake of ours.
RoundedLayer layer_of(const json& record, const RunState& state) {
  RoundedLayer layer;
  layer.name = record.at("name");
  const auto rows = record.at("rows").get<int64_t>();
  const auto tensor = [&](const char* part) { return state.tensors.at(layer.name + part); };
  layer.weight = {record.at("bits"), tensor(".codes").view({rows, -1}), tensor(".scale").view({rows, -1}),
                  tensor(".zero").view({rows, -1}), tensor(".groups")};
  layer.loss = number(record.at("loss"));
  layer.rounded_loss = number(record.at("rounded_loss"));
  layer.damping = record.at("damping");
  layer.sqnr_db = number(record.at("sqnr_db"));
  layer.max_error = record.at("max_error");
  layer.seconds = record.at("seconds");
  layer.dead_channels = record.at("dead_channels");
  layer.rounded = record.at("rounded");
  return layer;
}

json record_of(const Fold& fold) {
  return {{"from", fold.from},         {"layers", fold.layers}, {"plain_loss", number(fold.plain_loss)},
          {"loss", number(fold.loss)}, {"power", fold.power},   {"by_weight", fold.by_weight},
          {"made", fold.made}};
}

Fold fold_of(const json& record) {
  return {record.at("from"),         record.at("layers"), number(record.at("plain_loss")),
          number(record.at("loss")), record.at("power"),  record.at("by_weight"),
          record.at("made")};
}

constexpr const char* kChanged = "changed:";  // before the names of tensors

RoundedBlock block_of(const RunState& state) {
  RoundedBlock block;
  for (const json& record : json::parse(state.texts.at("layers")))
    block.layers.push_back(layer_of(record, state));
  for (const json& record : json::parse(state.texts.at("folds"))) block.folds.push_back(fold_of(record));
  const std::string prefix = kChanged;
  for (const auto& [name, tensor] : state.tensors) {
    if (name.starts_with(prefix)) block.changed[name.substr(prefix.size())] = tensor;
  }
  return block;
}

}  // namespace

void write_rounded_block(const std::string& folder, int64_t block, const std::string& fingerprint,
                         const RoundedBlock& rounded) {
  RunState state;
  json records = json::array(), folds = json::array();
  for (const Fold& fold : rounded.folds) folds.push_back(record_of(fold));
  for (const auto& [name, tensor] : rounded.changed) state.tensors[kChanged + name] = tensor;
  for (const RoundedLayer& layer : rounded.layers) {
    state.tensors[layer.name + ".codes"] = layer.weight.codes;
    state.tensors[layer.name + ".scale"] = layer.weight.scale;
    state.tensors[layer.name + ".zero"] = layer.weight.zero;
    state.tensors[layer.name + ".groups"] = layer.weight.groups;
    records.push_back(record_of(layer));
  }
  state.texts = {{"fingerprint", fingerprint}, {"layers", records.dump()}, {"folds", folds.dump()}};
  std::filesystem::create_directories(folder);
  write_state(state, file_of(folder, block));
}

std::optional<RoundedBlock> resumed_block(const CheckpointOptions& checkpoint, int64_t block) {
  const std::string path = file_of(checkpoint.path, block);
  if (!std::filesystem::exists(path)) return std::nullopt;
  const RunState state = read_state(path);
  if (state.texts.at("fingerprint") != checkpoint.fingerprint) {
    throw error(
        Exit::kConfig,
        "checkpoint '{}' belongs to a run with another model, other data or other settings; repeat that "
        "command, or start anew without --resume and with --force",
        path);
  }
  return block_of(state);
}

void remove_rounded_blocks(const std::string& folder) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(folder)) return;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("block-") || name.starts_with(".block-")) files.push_back(entry.path());
  }
  for (const fs::path& file : files) fs::remove(file);
  if (fs::is_empty(folder)) fs::remove(folder);
}

RoundedBlock read_rounded_block(const std::string& folder, int64_t block) {
  return block_of(read_state(file_of(folder, block)));
}

}  // namespace mcompress
