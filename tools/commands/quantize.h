#pragma once

#include <string>
#include <vector>

#include "command.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/compress.h"

namespace mcompress::cli {

// The settings of one `mcompress quantize`.
struct QuantizeCommand {
  std::string model, output, mode = "dynamic", dtype = "int8", runtime = "int8";
  Selection selection;
  bool per_tensor = false, embeddings = false, dry_run = false;
  EvalOptions eval;
  GateOptions gates;
};

// The two kinds of input: programs and weights without one.
void quantize_program(const QuantizeCommand& options, const RunOptions& run, Report& report);
void quantize_checkpoint(const QuantizeCommand& options, ModelFormat format, const RunOptions& run,
                         Report& report);

// Steps that both share, in the order of a run.

// Fills in the decisions of a plan. Throws Error(65) where nothing is left to compress.
void decide_all(std::vector<Decision>& plan, const QuantizeCommand& options);

// The user's own measure of the input comes before the long work, so that one that fails, fails early.
void evaluate_input(const QuantizeCommand& options, Report& report);

// One line of the report's layers.
LayerRecord record_of(const Decision& decision, const QuantizeCommand& options, uint64_t compressed_bytes);
// The same for a weight of no kind that is compressed, such as a recurrent layer's.
LayerRecord other_weight(const std::string& name, uint64_t bytes);

// Prints the plan, unless stdout is the report's.
void finish_dry_run(const RunOptions& run, const Report& report);

// Opens what was written before it takes its place; that it does not open is a mistake of ours.
template <typename Open>
auto reopen(Report& report, Open open) {
  return timed(report, "reopen", [&] {
    try {
      return open();
    } catch (const Error& failure) {
      if (failure.code() != Exit::kBadData) throw;
      throw error(Exit::kInternal, "internal error: the output does not open: {}; please report it",
                  failure.what());
    }
  });
}

// What follows once the output is in place: the user's measure, gates, the log.
void conclude(const QuantizeCommand& options, Report& report);

}  // namespace mcompress::cli
