#pragma once

#include <string>

#include "compress_steps.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/compress.h"

namespace mcompress::cli {

// The settings of one `mcompress quantize`.
struct QuantizeCommand : CompressOptions {
  std::string mode = "dynamic", dtype = "int8", runtime = "int8";
  bool per_tensor = false, embeddings = false;
};

// The two kinds of input: programs and weights without one.
void quantize_program(const QuantizeCommand& options, const RunOptions& run, Report& report);
void quantize_checkpoint(const QuantizeCommand& options, ModelFormat format, const RunOptions& run,
                         Report& report);

// Why dynamic mode leaves a kind of layer alone; empty where it does not.
std::string obstacle_of(LayerKind kind, const QuantizeCommand& options);

}  // namespace mcompress::cli
