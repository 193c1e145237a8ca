#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/base/output.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/compressed_weight.h"
#include "mcompress/model/layer.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

// What a weight of a checkpoint without a program is, told from its name and rank: a matrix named
// like an embedding is one, any other matrix is a linear layer. False where it is no layer's weight.
bool guess_kind(const Array& array, LayerKind& kind);
bool is_embedding(const std::string& weight);  // by its name, "model.embed_tokens.weight"

// Why the weight of a layer cannot be compressed, though its kind can: it is empty, or quantized
// already, which `names`, those of all arrays, may tell. Empty where it can.
std::string obstacle_of(const Array& array, const std::set<std::string>& names);
std::set<std::string> names_of(const CheckpointFiles& checkpoint);

// A view of rows [begin, end) of an array in its map; copied where the map is not aligned.
at::Tensor rows_of(const Array& array, int64_t begin, int64_t end);

// All rows of an array in its map, which stays as long as the tensor does.
at::Tensor map_rows(const Array& array, const SharedFile& file);

// The elements of an array in its map, read a piece at a time.
ElementCount count_elements_of(const Array& array, const MappedFile& map);

// How the chosen weights of a checkpoint are stored.
enum class StoredType { kInt8Rows, kInt8Tensor, kFloat16, kBFloat16 };

// What becomes of the arrays of a checkpoint.
struct StoragePlan {
  StoredType type = StoredType::kInt8Rows;
  std::vector<bool> chosen;              // by array; the others stay as they are
  std::vector<std::string> kept_linear;  // names of the linear layers that were left alone
  std::vector<std::string> embeddings;   // names of the embeddings that were not
};

// The name of the scale beside an int8 array, as compressed-tensors has it: `NAME_scale`.
std::string scale_name(const std::string& array);

// Turns some rows [n, columns], float32, into codes int8 and scale [n].
using QuantizeRows = std::function<IntChannel(const at::Tensor& rows)>;

// Writes the arrays of `checkpoint` that lie in its file number `part` as safetensors: those that
// are chosen as int8 with a float32 scale beside ([rows, 1], or [1] for one scale a tensor), or as a
// narrower float; the rest as they are. Rows are read, quantized and written a piece at a time, so
// that memory does not grow with the file. Throws Error(65) naming an array that holds NaN or
// infinity, or overflows float16, or whose name is not UTF-8.
void write_compressed(const CheckpointFiles& checkpoint, size_t part, const StoragePlan& plan,
                      const QuantizeRows& quantize, OutputFile& file);
uint64_t predict_compressed_bytes(const CheckpointFiles& checkpoint, const StoragePlan& plan);

// Writes a Hugging Face folder beside its `source`: the compressed shards under their names, the
// index, config.json with a compressed-tensors quantization_config (int-quantized, W8A8 dynamic),
// every other file as it is.
void write_compressed_folder(const CheckpointFiles& checkpoint, const std::string& source,
                             const StoragePlan& plan, const QuantizeRows& quantize, OutputFolder& folder);
uint64_t predict_folder_bytes(const CheckpointFiles& checkpoint, const std::string& source,
                              const StoragePlan& plan);

// New content of some rows of an array, of its type and shape, asked for in order.
using EditRows = std::function<at::Tensor(const at::Tensor& rows, int64_t begin, int64_t end)>;

// Writes file number `part` of the checkpoint with new values in some arrays, by their index, and all else as
// it is. Arrays that share their bytes with an edited one follow it. Read and written a piece at a time.
void write_edited(const CheckpointFiles& checkpoint, size_t part, const std::map<size_t, EditRows>& edits,
                  OutputFile& file);
// The same for a whole Hugging Face folder beside its `source`.
void write_edited_folder(const CheckpointFiles& checkpoint, const std::string& source,
                         const std::map<size_t, EditRows>& edits, OutputFolder& folder);

}  // namespace mcompress
