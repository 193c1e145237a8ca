#include "mcompress/model/checkpoint.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/formats/json.h"
#include "mcompress/formats/safetensors.h"

namespace mcompress {

namespace {

constexpr uint64_t kPieceBytes = uint64_t{256} << 10;

at::ScalarType scalar_type(const Array& array) {
  switch (array.dtype) {
    case DType::kBool: return at::kBool;
    case DType::kU8: return at::kByte;
    case DType::kI8: return at::kChar;
    case DType::kI16: return at::kShort;
    case DType::kF16: return at::kHalf;
    case DType::kBF16: return at::kBFloat16;
    case DType::kI32: return at::kInt;
    case DType::kF32: return at::kFloat;
    case DType::kI64: return at::kLong;
    case DType::kF64: return at::kDouble;
    default:
      throw bad_data("tensor '{}' has the dtype {}, which is not computed with", array.name,
                     name_of(array.dtype));
  }
}

Bytes bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

// Rows that fit one piece.
int64_t rows_a_piece(const Array& array) {
  const auto row_bytes = static_cast<uint64_t>(array.shape[1]) * size_of(array.dtype);
  return static_cast<int64_t>(std::max<uint64_t>(1, kPieceBytes / std::max<uint64_t>(1, row_bytes)));
}

std::string scale_name(const Array& array) { return array.name + "_scale"; }

DType stored_dtype(StoredType type) {
  if (type == StoredType::kFloat16) return DType::kF16;
  return type == StoredType::kBFloat16 ? DType::kBF16 : DType::kI8;
}

// Calls `use` with pieces of rows as float32, after a check that they are finite.
void for_each_piece(const Array& array, const MappedFile& map,
                    const std::function<void(int64_t begin, const at::Tensor& rows)>& use) {
  const int64_t piece = rows_a_piece(array);
  for (int64_t begin = 0; begin < array.shape[0]; begin += piece) {
    check_interrupt();
    const int64_t end = std::min(begin + piece, array.shape[0]);
    const at::Tensor rows = rows_of(array, begin, end).to(at::kFloat);
    if (!rows.isfinite().all().item<bool>()) {
      throw bad_data("tensor '{}' holds NaN or infinity; repair the model or leave it out with --ignore",
                     array.name);
    }
    use(begin, rows);
    // The kernel maps pages around a fault again, so all that was read is dropped each time.
    if (array.strides.empty()) {
      const auto row_bytes = static_cast<size_t>(array.shape[1]) * size_of(array.dtype);
      map.drop(array.bytes.first(static_cast<size_t>(end) * row_bytes));
    }
  }
}

at::Tensor to_narrow(const Array& array, const at::Tensor& rows, StoredType type) {
  at::Tensor narrow = rows.to(type == StoredType::kFloat16 ? at::kHalf : at::kBFloat16);
  if (!narrow.isfinite().all().item<bool>()) {
    throw bad_data(
        "tensor '{}' has values beyond the range of float16; use bfloat16 or leave it out with --ignore",
        array.name);
  }
  return narrow;
}

// One scale for the whole array: a first pass finds the largest magnitude.
void write_int8_tensor(const Array& array, const MappedFile& map, const SafetensorsWriter& writer,
                       OutputFile& file) {
  float largest = 0;
  for_each_piece(array, map, [&](int64_t, const at::Tensor& rows) {
    largest = std::max(largest, rows.abs().max().item<float>());
  });
  const float scale = largest > 0 ? largest / 127.0F : 1.0F;
  for_each_piece(array, map, [&](int64_t begin, const at::Tensor& rows) {
    const at::Tensor codes = (rows / scale).round().clamp(-127, 127).to(at::kChar);
    writer.write(file, array.name, static_cast<uint64_t>(begin * array.shape[1]), bytes_of(codes));
  });
  writer.write(file, scale_name(array), 0, std::as_bytes(std::span(&scale, 1)));
}

void write_chosen(const Array& array, const MappedFile& map, StoredType type, const QuantizeRows& quantize,
                  const SafetensorsWriter& writer, OutputFile& file) {
  if (type == StoredType::kInt8Tensor) return write_int8_tensor(array, map, writer, file);
  for_each_piece(array, map, [&](int64_t begin, const at::Tensor& rows) {
    const auto offset = static_cast<uint64_t>(begin * array.shape[1]) * size_of(stored_dtype(type));
    if (type != StoredType::kInt8Rows) {
      writer.write(file, array.name, offset, bytes_of(to_narrow(array, rows, type)));
      return;
    }
    const Int8Channel int8 = quantize(rows);
    writer.write(file, array.name, offset, bytes_of(int8.codes.contiguous()));
    writer.write(file, scale_name(array), static_cast<uint64_t>(begin) * sizeof(float),
                 bytes_of(int8.scale.contiguous()));
  });
}

void write_unchanged(const Array& array, const MappedFile& map, const SafetensorsWriter& writer,
                     OutputFile& file) {
  if (!array.strides.empty()) {
    const at::Tensor copy = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]).contiguous();
    writer.write(file, array.name, 0, bytes_of(copy));
    return;
  }
  for (size_t at = 0; at < array.bytes.size(); at += kPieceBytes) {
    check_interrupt();
    const Bytes part = array.bytes.subspan(at, std::min<size_t>(kPieceBytes, array.bytes.size() - at));
    writer.write(file, array.name, at, part);
    map.drop(array.bytes.first(at + part.size()));
  }
}

}  // namespace

PieceCount count_elements_of(const Array& array, const MappedFile& map) {
  PieceCount count;
  const auto add = [&count](const at::Tensor& part) {
    count.elements += part.numel();
    count.nonzeros += part.count_nonzero().item<int64_t>();
    if (part.is_floating_point()) count.non_finite += part.numel() - part.isfinite().sum().item<int64_t>();
  };
  if (!array.strides.empty()) {
    add(rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]));
    return count;
  }
  const auto total = static_cast<int64_t>(array.bytes.size() / size_of(array.dtype));
  const Array flat{array.name, array.dtype, {total}, {}, array.bytes};
  const auto piece = static_cast<int64_t>(kPieceBytes / size_of(array.dtype));
  for (int64_t begin = 0; begin < total; begin += piece) {
    check_interrupt();
    const int64_t end = std::min(begin + piece, total);
    add(rows_of(flat, begin, end));
    map.drop(array.bytes.first(static_cast<size_t>(end) * size_of(array.dtype)));
  }
  return count;
}

bool guess_kind(const Array& array, LayerKind& kind) {
  if (!is_floating(array.dtype) || !array.name.ends_with("weight")) return false;
  switch (array.shape.size()) {
    case 2: kind = LayerKind::kLinear; break;
    case 3: kind = LayerKind::kConv1d; break;
    case 4: kind = LayerKind::kConv2d; break;
    default: return false;
  }
  constexpr std::array kEmbeddingNames = {"embed", "wte.weight", "wpe.weight"};
  const bool named = std::any_of(kEmbeddingNames.begin(), kEmbeddingNames.end(), [&](const char* part) {
    // The last module of the name: a linear layer inside an 'embeddings' block is no embedding.
    const size_t weight = array.name.rfind('.');
    const size_t module =
        weight == std::string::npos || weight == 0 ? std::string::npos : array.name.rfind('.', weight - 1);
    return array.name.find(part, module == std::string::npos ? 0 : module) != std::string::npos;
  });
  if (named && kind == LayerKind::kLinear) kind = LayerKind::kEmbedding;
  return true;
}

at::Tensor rows_of(const Array& array, int64_t begin, int64_t end) {
  const at::ScalarType type = scalar_type(array);
  auto* data = const_cast<std::byte*>(array.bytes.data());
  if (!array.strides.empty()) {
    at::Tensor whole = at::from_blob(data, array.shape, array.strides, type);
    return array.shape.empty() ? whole : whole.slice(0, begin, end);
  }
  std::vector<int64_t> shape = array.shape;
  size_t row_bytes = array.bytes.size();
  if (!shape.empty()) {
    row_bytes = shape[0] == 0 ? 0 : array.bytes.size() / static_cast<size_t>(shape[0]);
    shape[0] = end - begin;
  }
  data += static_cast<size_t>(begin) * row_bytes;
  if (reinterpret_cast<uintptr_t>(data) % size_of(array.dtype) == 0) return at::from_blob(data, shape, type);
  at::Tensor copy = at::empty(shape, type);
  std::copy_n(data, copy.nbytes(), static_cast<std::byte*>(copy.data_ptr()));
  return copy;
}

namespace {

SafetensorsWriter make_writer(const CheckpointFiles& checkpoint, size_t part, const std::vector<bool>& chosen,
                              StoredType type) {
  const bool scaled = type == StoredType::kInt8Rows || type == StoredType::kInt8Tensor;
  std::vector<SafetensorsWriter::Entry> entries;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    if (checkpoint.file_of[i] != part) continue;
    entries.push_back({array.name, chosen[i] ? stored_dtype(type) : array.dtype, array.shape});
    if (!chosen[i] || !scaled) continue;
    const bool rows = type == StoredType::kInt8Rows;
    entries.push_back({scale_name(array), DType::kF32,
                       rows ? std::vector<int64_t>{array.shape[0], 1} : std::vector<int64_t>{1}});
  }
  return {std::move(entries), checkpoint.metadata};
}

constexpr const char* kIndexName = "model.safetensors.index.json";

nlohmann::ordered_json read_ordered(const std::string& path) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  parse_json(text, fmt::format("'{}'", path));
  return nlohmann::ordered_json::parse(text);
}

void write_text(const std::string& path, const std::string& text) {
  OutputFile file(path, true);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

nlohmann::ordered_json quantization_config(const CheckpointFiles& checkpoint, StoredType type,
                                           std::vector<std::string> kept) {
  // A head that is tied to the embedding has no weight of its own, and readers must not expect a scale.
  const bool has_head = std::any_of(checkpoint.arrays.begin(), checkpoint.arrays.end(),
                                    [](const Array& a) { return a.name.ends_with("lm_head.weight"); });
  if (!has_head) kept.emplace_back("lm_head");
  const auto scheme = [](const char* strategy, bool dynamic) {
    return nlohmann::ordered_json{{"num_bits", 8},
                                  {"type", "int"},
                                  {"symmetric", true},
                                  {"strategy", strategy},
                                  {"group_size", nullptr},
                                  {"dynamic", dynamic},
                                  {"actorder", nullptr},
                                  {"block_structure", nullptr},
                                  {"observer", dynamic ? nlohmann::ordered_json(nullptr) : "minmax"},
                                  {"observer_kwargs", nlohmann::ordered_json::object()}};
  };
  return {{"quant_method", "compressed-tensors"},
          {"format", "int-quantized"},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},
          {"kv_cache_scheme", nullptr},
          {"ignore", kept},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"output_activations", nullptr},
              {"weights", scheme(type == StoredType::kInt8Tensor ? "tensor" : "channel", false)},
              {"input_activations", scheme("token", true)}}}}}};
}

// The index of the output: every tensor with its shard, and the bytes of them all.
void write_index(const CheckpointFiles& checkpoint, const std::vector<bool>& chosen, StoredType type,
                 OutputFolder& folder) {
  const bool scaled = type == StoredType::kInt8Rows || type == StoredType::kInt8Tensor;
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  uint64_t total = 0;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const std::string shard =
        std::filesystem::path(checkpoint.files[checkpoint.file_of[i]]->path()).filename().string();
    map[array.name] = shard;
    total += count_elements(array.shape).value() * size_of(chosen[i] ? stored_dtype(type) : array.dtype);
    if (!chosen[i] || !scaled) continue;
    map[scale_name(array)] = shard;
    total += (type == StoredType::kInt8Rows ? static_cast<uint64_t>(array.shape[0]) : 1) * sizeof(float);
  }
  write_text(
      folder.path_of(kIndexName),
      nlohmann::ordered_json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n");
}

}  // namespace

uint64_t predict_checkpoint_bytes(const CheckpointFiles& checkpoint, const std::vector<bool>& chosen,
                                  StoredType type) {
  uint64_t bytes = 0;
  for (size_t part = 0; part < checkpoint.files.size(); ++part)
    bytes += make_writer(checkpoint, part, chosen, type).file_bytes();
  return bytes;
}

void write_compressed(const CheckpointFiles& checkpoint, size_t part, const std::vector<bool>& chosen,
                      StoredType type, const QuantizeRows& quantize, OutputFile& file) {
  const SafetensorsWriter writer = make_writer(checkpoint, part, chosen, type);
  writer.write_header(file);
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    if (checkpoint.file_of[i] != part) continue;
    const MappedFile& map = *checkpoint.files[part];
    if (chosen[i]) {
      write_chosen(array, map, type, quantize, writer, file);
    } else {
      write_unchanged(array, map, writer, file);
    }
  }
}

void write_compressed_folder(const CheckpointFiles& checkpoint, const std::string& source,
                             const std::vector<bool>& chosen, StoredType type, const QuantizeRows& quantize,
                             const std::vector<std::string>& kept, OutputFolder& folder) {
  for (size_t part = 0; part < checkpoint.files.size(); ++part) {
    const std::string name = std::filesystem::path(checkpoint.files[part]->path()).filename().string();
    OutputFile file(folder.path_of(name), true);
    write_compressed(checkpoint, part, chosen, type, quantize, file);
    file.commit();
  }
  const bool int8 = type == StoredType::kInt8Rows || type == StoredType::kInt8Tensor;
  for (const auto& entry : std::filesystem::directory_iterator(source)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name.ends_with(".safetensors") || name == kIndexName) continue;
    if (name == "config.json" && int8) {
      nlohmann::ordered_json config = read_ordered(entry.path().string());
      config["quantization_config"] = quantization_config(checkpoint, type, kept);
      write_text(folder.path_of(name), config.dump(2) + "\n");
    } else {
      OutputFile file(folder.path_of(name), true);
      file.write(MappedFile(entry.path().string()).bytes());
      file.commit();
    }
  }
  if (std::filesystem::exists(source + "/" + kIndexName)) write_index(checkpoint, chosen, type, folder);
}

}  // namespace mcompress
