#include "inspect_language.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/text.h"
#include "mcompress/data/tokenizer.h"
#include "mcompress/formats/gguf.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/decoder.h"
#include "models.h"

namespace mcompress::cli {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::array<const char*, 6> kParts = {"embedding", "attention", "feed_forward",
                                               "norms",     "head",      "other"};

// The part of a model that a tensor belongs to, told from its name as the usual architectures have it.
std::string part_of(const std::string& name) {
  const auto has = [&](std::string_view text) { return name.find(text) != std::string::npos; };
  if (has("norm") || has("ln_")) return "norms";
  if (has("embed") || has("token_embd") || has("position_embd") || has("wte.") || has("wpe."))
    return "embedding";
  if (has("lm_head") || name == "output.weight" || name == "output.bias") return "head";
  if (has("attn") || has("attention")) return "attention";
  if (has("mlp") || has("ffn") || has("fc1") || has("fc2") || has("experts")) return "feed_forward";
  return "other";
}

struct Tensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  int64_t weights = 0;                // numbers of the model that it stands for
  std::vector<std::string> commands;  // that treat it
};

struct Language {
  std::string architecture, quantization;  // as the file names them; empty: none
  std::optional<DecoderConfig> config;
  std::string obstacle;  // why the model cannot be run; empty where it can
  std::optional<TokenizerSummary> tokenizer;
  std::vector<Tensor> tensors;
  std::vector<std::string> commands, notes;
};

// What a quantization_config says, whichever tool wrote it: "gptq, 4 bits, group size 128".
struct Quantization {
  std::string text;
  int64_t bits = 0;  // 0: it does not say
};

Quantization read_quantization(const json& config) {
  if (!config.is_object()) return {};
  const auto text_of = [](const json& object, const char* key) {
    const json value = object.is_object() ? object.value(key, json()) : json();
    if (value.is_null() || value.is_structured()) return std::string();
    return value.is_string() ? value.get<std::string>() : value.dump();
  };
  Quantization found{text_of(config, "quant_method")};
  if (found.text.empty()) found.text = "unknown method";
  json numbers = config;
  const json groups = config.value("config_groups", json());
  if (groups.is_object() && !groups.empty()) {
    const json& group = groups.begin().value();
    if (group.is_object() && group.contains("weights")) numbers = group["weights"];
    if (const std::string format = text_of(config, "format"); !format.empty()) found.text += " " + format;
  }
  for (const char* key : {"bits", "num_bits", "w_bit"}) {
    const json bits = numbers.is_object() ? numbers.value(key, json()) : json();
    if (!bits.is_number_integer() || bits < 1 || bits > 16) continue;
    found.bits = bits.get<int64_t>();
    found.text += fmt::format(", {} bits", found.bits);
    break;
  }
  for (const char* key : {"group_size", "q_group_size"}) {
    if (const std::string size = text_of(numbers, key); !size.empty())
      found.text += fmt::format(", group size {}", size);
  }
  return found;
}

// Quantized folders pack several weights into a number.
bool is_packed(const Array& array) {
  return array.dtype == DType::kI32 &&
         (array.name.ends_with("qweight") || array.name.ends_with("weight_packed"));
}

// The inputs of a packed layer where a tensor beside it tells them; 0 where none does.
int64_t inputs_of(const Array& packed, const std::map<std::string, const Array*>& arrays) {
  const bool gptq = packed.name.ends_with(".qweight");
  if (packed.shape.size() != 2 || (!gptq && !packed.name.ends_with(".weight_packed"))) return 0;
  const auto found =
      arrays.find(packed.name.substr(0, packed.name.rfind('.')) + (gptq ? ".g_idx" : ".weight_shape"));
  if (found == arrays.end()) return 0;
  const Array& beside = *found->second;
  if (gptq) return beside.shape.size() == 1 ? beside.shape[0] : 0;
  if (beside.dtype != DType::kI64 || beside.bytes.size() != 2 * sizeof(int64_t)) return 0;
  int64_t inputs = 0;
  std::memcpy(&inputs, beside.bytes.data() + sizeof(inputs), sizeof(inputs));
  constexpr int64_t kMost = 16;  // in a word, of 2 bits each
  return inputs > 0 && inputs <= packed.shape[1] * kMost ? inputs : 0;
}

// How many weights of the model a tensor stands for.
int64_t weights_of(const Array& array, int64_t bits, int64_t inputs) {
  const auto count = static_cast<int64_t>(count_elements(array.shape).value());
  if (is_packed(array) && inputs > 0) return inputs * array.shape[array.name.ends_with("qweight") ? 1 : 0];
  if (is_packed(array)) return bits > 0 ? count * 32 / bits : 0;
  const bool helper = array.name.ends_with("_scale") || array.name.ends_with(".scales") ||
                      array.name.ends_with("zeros") || array.name.ends_with("zero_point");
  return !helper && (is_floating(array.dtype) || array.dtype == DType::kI8) ? count : 0;
}

Language read_folder(const std::string& path) {
  Language model;
  const json config = read_json_file(path + "/config.json");
  if (!config.is_object()) throw bad_data("'{}/config.json' is not a JSON object", path);
  const Quantization quantization = read_quantization(config.value("quantization_config", json()));
  model.architecture = model_type_of(path);
  model.quantization = quantization.text;
  const CheckpointFiles files = read_checkpoint(path, ModelFormat::kHuggingFace);
  model.notes = files.notes;
  const std::set<std::string> names = names_of(files);
  std::set<std::string> commands;
  std::map<std::string, const Array*> arrays;
  for (const Array& array : files.arrays) arrays[array.name] = &array;
  int64_t uncounted = 0;
  for (const Array& array : files.arrays) {
    Tensor tensor{array.name,
                  name_of(array.dtype),
                  array.shape,
                  count_elements(array.shape).value() * size_of(array.dtype),
                  weights_of(array, quantization.bits, is_packed(array) ? inputs_of(array, arrays) : 0),
                  {}};
    LayerKind kind{};
    if (guess_kind(array, kind) && obstacle_of(array, names).empty()) tensor.commands = {"quantize", "prune"};
    commands.insert(tensor.commands.begin(), tensor.commands.end());
    uncounted += array.dtype == DType::kU8 || (is_packed(array) && tensor.weights == 0) ? 1 : 0;
    model.tensors.push_back(std::move(tensor));
  }
  model.commands = {commands.rbegin(), commands.rend()};
  if (uncounted > 0)
    model.notes.push_back(
        fmt::format("{} tensors hold packed weights, which are not among the parameters", uncounted));
  return model;
}

Language read_gguf_file(const std::string& path) {
  Language model;
  const MappedFile file(path);
  const GgufFile content = read_gguf(file.bytes(), path);
  if (const auto* name = find_value<std::string>(content, "general.architecture")) model.architecture = *name;
  std::map<std::string, uint64_t> by_type;
  for (const GgufTensor& tensor : content.tensors) {
    const auto count = static_cast<int64_t>(count_elements(tensor.shape).value());
    model.tensors.push_back(
        {tensor.name, name_of(tensor.type), tensor.shape, tensor.bytes.size(), count, {}});
    by_type[name_of(tensor.type)] += tensor.bytes.size();
  }
  const auto most = std::max_element(by_type.begin(), by_type.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most != by_type.end() && most->first.starts_with('Q')) model.quantization = "GGUF " + most->first;
  return model;
}

// What the configuration of one that can be run says, or why it cannot.
void read_config(const std::string& path, Language& model) {
  try {
    model.config = read_model_config(path);
  } catch (const Error& failure) {
    if (failure.code() != Exit::kBadData) throw;
    model.obstacle = failure.what();
  }
  try {
    if (has_tokenizer(path)) model.tokenizer = summarize_tokenizer(path);
  } catch (const Error& failure) {
    if (failure.code() != Exit::kBadData) throw;
    model.notes.push_back(fmt::format("the tokenizer cannot be read: {}", failure.what()));
  }
  if (model.tokenizer && model.tokenizer->kind.empty()) model.tokenizer.reset();
  if (!model.obstacle.empty()) return;
  const bool rounds = model.config->quantization.empty() && std::filesystem::is_directory(path);
  if (rounds) model.commands.insert(model.commands.begin(), {"gptq", "awq"});
  model.commands.insert(model.commands.begin(), "evaluate");
}

std::map<std::string, uint64_t> bytes_by_part(const Language& model) {
  std::map<std::string, uint64_t> bytes;
  for (const Tensor& tensor : model.tensors) bytes[part_of(tensor.name)] += tensor.bytes;
  return bytes;
}

int64_t windowed_blocks(const DecoderConfig& config) {
  return std::count_if(config.windows.begin(), config.windows.end(),
                       [](int64_t window) { return window > 0; });
}

ordered_json config_json(const DecoderConfig& config) {
  return {{"blocks", config.blocks},
          {"width", config.width},
          {"feed_forward", config.inner},
          {"heads", config.heads},
          {"key_value_heads", config.kv_heads},
          {"head_width", config.head_width},
          {"vocabulary", config.vocabulary},
          {"context", config.positions},
          {"windowed_blocks", windowed_blocks(config)},
          {"tied_head", config.tied_head}};
}

ordered_json to_json(const Language& model) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? ordered_json(nullptr) : ordered_json(text);
  };
  ordered_json parts = ordered_json::object();
  const auto bytes = bytes_by_part(model);
  for (const char* part : kParts) parts[part] = bytes.contains(part) ? bytes.at(part) : 0;
  ordered_json tokenizer = nullptr;
  if (model.tokenizer) tokenizer = {{"kind", model.tokenizer->kind}, {"tokens", model.tokenizer->tokens}};
  return {{"architecture", or_null(model.architecture)},
          {"shape", model.config ? config_json(*model.config) : ordered_json(nullptr)},
          {"tokenizer", tokenizer},
          {"quantization", or_null(model.quantization)},
          {"bytes", parts},
          {"commands", model.commands},
          {"obstacle", or_null(model.obstacle)}};
}

void print_json(const Language& model, const Artifact& input) {
  ordered_json layers = ordered_json::array();
  for (const Tensor& tensor : model.tensors) {
    layers.push_back({{"name", tensor.name},
                      {"part", part_of(tensor.name)},
                      {"shape", tensor.shape},
                      {"dtype", tensor.dtype},
                      {"bytes", tensor.bytes},
                      {"commands", tensor.commands}});
  }
  const ordered_json result = {{"format", input.format},           {"bytes", input.bytes},
                               {"parameters", input.parameters},   {"notes", model.notes},
                               {"language_model", to_json(model)}, {"layers", layers}};
  fmt::print("{}\n", result.dump(2, ' ', false, ordered_json::error_handler_t::replace));
}

void print_text(const Language& model, const Artifact& input) {
  fmt::print("{}: {} parameters, {} bytes, {:.2f} bits per weight\n", input.format, input.parameters,
             input.bytes, input.bits_per_weight());
  std::string line =
      "architecture " + (model.architecture.empty() ? "unknown" : printable(model.architecture));
  if (model.config) {
    const DecoderConfig& c = *model.config;
    line += fmt::format(
        ": {} blocks of width {} and {}, {} heads of {} ({} for keys and values), context {}, "
        "vocabulary {}{}",
        c.blocks, c.width, c.inner, c.heads, c.head_width, c.kv_heads, c.positions, c.vocabulary,
        c.tied_head ? ", head tied to the embedding" : "");
    if (const int64_t windowed = windowed_blocks(c); windowed > 0)
      line += fmt::format(", a sliding window in {} of them", windowed);
  }
  fmt::print("{}\n", line);
  if (model.tokenizer) {
    fmt::print("tokenizer: {}, {} tokens\n", printable(model.tokenizer->kind), model.tokenizer->tokens);
  } else {
    fmt::print("tokenizer: none\n");
  }
  if (!model.quantization.empty()) fmt::print("quantized: {}\n", printable(model.quantization));
  const auto bytes = bytes_by_part(model);
  std::vector<std::string> parts;
  for (const char* part : kParts) {
    if (bytes.contains(part)) parts.push_back(fmt::format("{} {}", part, bytes.at(part)));
  }
  fmt::print("bytes: {}\n", fmt::join(parts, ", "));
  fmt::print("commands: {}\n",
             model.commands.empty() ? "none" : fmt::format("{}", fmt::join(model.commands, ", ")));
  if (!model.obstacle.empty()) fmt::print("cannot be run: {}\n", printable(model.obstacle));
  for (const std::string& note : model.notes) fmt::print("{}\n", printable(note));
  for (const Tensor& tensor : model.tensors)
    fmt::print("{:<56} {:<12} {:<5} [{}] {:>12}\n", printable(tensor.name), part_of(tensor.name),
               tensor.dtype, fmt::join(tensor.shape, ", "), tensor.bytes);
}

}  // namespace

void inspect_language(const std::string& path, ModelFormat format, InspectOutput output, Report& report) {
  Language model = format == ModelFormat::kGguf ? read_gguf_file(path) : read_folder(path);
  read_config(path, model);
  Artifact input{path, name_of(format), "", bytes_on_disk(path), 0, {}};
  for (const Tensor& tensor : model.tensors) input.parameters += tensor.weights;
  report.input = input;
  if (output == InspectOutput::kJson) print_json(model, input);
  if (output == InspectOutput::kText) print_text(model, input);
}

}  // namespace mcompress::cli
