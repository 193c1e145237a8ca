#pragma once

#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/formats/gguf_write.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// Where a tensor of a language model goes in a GGUF file (gguf-py, constants.py).
struct GgufPlace {
  std::string source, name;    // with ".weight"; no source where the values follow from the configuration
  std::vector<int64_t> shape;  // of matrices [outputs, inputs]
  // Of q and k of architectures that rotate neighbours, whose rows llama.cpp has in another order: heads;
  // else 0.
  int64_t heads = 0;
  bool transposed = false;  // the folder has it [inputs, outputs]
};

// Metadata and places of a model in the order of a file. Throws Error(65) for architectures that are not
// written, and for what readers would compute otherwise: rotations, windows, biases, activations, caps.
std::vector<std::pair<std::string, GgufField>> gguf_model_fields(const DecoderConfig& config,
                                                                 const std::string& name);
std::vector<GgufPlace> gguf_places(const DecoderConfig& config);

// The values of one tensor as the file has them, float32.
at::Tensor gguf_values(const Decoder& model, const GgufPlace& place);

// The scales of blocks of Q4_0 or Q8_0 that hold the codes of a packed matrix as they are, float32 [rows,
// blocks of a row]: numbers of float16, to which others are rounded where `round` says so. Undefined where
// the type has no place for its codes, scales, zero points or groups.
at::Tensor gguf_scales(const IntGroup& weight, const GgufPlace& place, GgufType type, bool round);

// Rows [n, columns] as blocks of the type, uint8 [n, bytes of a row], with these scales where they are
// defined.
at::Tensor gguf_blocks(const at::Tensor& rows, GgufType type, const at::Tensor& scales = {});

}  // namespace mcompress
