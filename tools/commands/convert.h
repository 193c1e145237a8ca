#pragma once

#include <string>
#include <vector>

#include "compress_steps.h"
#include "group_options.h"

namespace mcompress::cli {

struct ConvertCommand {
  std::string model, output;
  std::string format;
  uint64_t shard_bytes = GroupOptions().shard_bytes;
  std::string type = "Q8_0";  // of matrices in a GGUF file
  bool allow_requantize = false, dry_run = false;
};

// Of a model whose layers round their inputs too, to a format that has no place for that.
void warn_of_rounded_inputs(Report& report);
void convert_to_gguf(const ConvertCommand& options, const RunOptions& run, Report& report);
std::vector<std::string> gguf_type_names();
void convert_from_gguf(const ConvertCommand& options, const RunOptions& run, Report& report);

}  // namespace mcompress::cli
