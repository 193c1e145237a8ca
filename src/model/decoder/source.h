#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/gguf.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

using Shape = std::vector<int64_t>;

// A model that is well formed, and that cannot be run.
class Unsupported : public Error {
  using Error::Error;
};
template <typename... Args>
Unsupported unsupported(fmt::format_string<Args...> format, Args&&... args) {
  return {Exit::kBadData, fmt::format(format, std::forward<Args>(args)...)};
}

// A file or folder with the tensors of a model.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  const std::map<std::string, Shape>& shapes() const { return shapes_; }

  // A tensor of a floating type, in the map of the file where it lies there as such.
  virtual at::Tensor read(const std::string& name) const = 0;

  // Whether the weight is that of a layer which rounds its inputs.
  virtual bool rounds_inputs(const std::string& name) const = 0;

  // Gives back the pages of all tensors whose names begin so.
  virtual void give_back(const std::string& prefix) const = 0;

 protected:
  std::map<std::string, Shape> shapes_;
};

// A configuration with the weights that go with it.
struct OpenedModel {
  DecoderConfig config;
  std::unique_ptr<WeightSource> weights;
};

// Buffers that older versions of transformers saved, and the head where it is the embedding.
bool is_known_extra(const std::string& name, const DecoderConfig& config);

// Without its head a model is saved without the name of its body: "wte", not "transformer.wte".
template <class Has>
void name_as_stored(DecoderNames& names, const Has& has) {
  const std::string outer = names.base.substr(0, names.base.find('.') + 1),
                    inner = names.base.substr(outer.size()), embedding = names.embedding + ".weight";
  if (!has(names.base + embedding) && has(inner + embedding)) names.base = inner;
}

// Throw Error(65) where the tensors are none to compute with.
OpenedModel open_folder(const std::string& path);
OpenedModel open_gguf(const std::string& path);

// The tensors of a GGUF file that say how positions are rotated, and not what the model computes with.
constexpr const char* kFrequencies = "rope_freqs.weight";
constexpr const char* kShortFactors = "rope_factors_short.weight";
constexpr const char* kLongFactors = "rope_factors_long.weight";

// Whether llama.cpp orders the rows of q and k of an architecture of GGUF so that neighbours rotate together.
bool rotates_neighbours(std::string_view architecture);

// What GGUF calls tensors (constants.py of gguf-py); q, k and v, or gate and up, may be one.
DecoderNames gguf_names(bool joined_inputs, bool joined_gate);

// What the metadata says of the model, and where the tensors of GGUF (llama.cpp, constants.py of gguf-py)
// stand in it. Throws Unsupported for an architecture that is not known, with those that are, or what it does
// otherwise, and Error(65) for what it lacks.
DecoderConfig gguf_decoder_config(const GgufFile& file, const std::string& path);

}  // namespace mcompress
