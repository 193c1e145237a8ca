#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <torch/script.h>

#include "command.h"
#include "evaluate_text.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/plan.h"

namespace mcompress::cli {

// The settings of every command that writes a smaller model.
struct CompressOptions {
  std::string model, output;
  Selection selection;
  bool dry_run = false;
  EvalOptions eval;
  TextCommand text;  // how a language model is measured
  GateOptions gates;
};
void add_compress_options(CLI::App& app, CompressOptions& options, const std::string& output_help);
// The part of them that a command with other inputs has too: output, gates, and how to measure.
void add_output_options(CLI::App& app, CompressOptions& options, const std::string& output_help);
// Refuses (2) -o -.
void check_not_stdout(const std::string& output);
// What is wrong with them before any file is read.
void check_compress_options(const CompressOptions& options, const std::string& command);

// Refuses (65) weights that are stored as a bitmask.
void check_not_stored(const std::map<std::string, std::string>& metadata, const CompressOptions& options);

// Steps that these commands share, in the order of a run.

// Fills in the decisions of a plan; `obstacle_of` tells why a kind of layer is left alone. Throws Error(65)
// where nothing is left to compress.
void decide_all(std::vector<Decision>& plan, const CompressOptions& options,
                const std::function<std::string(LayerKind)>& obstacle_of);

// The user's own measure of the input comes before the long work, so that one that fails, fails early.
void evaluate_input(const CompressOptions& options, Report& report);

// Refuses (73) an output inside the folder that is read.
void refuse_output_inside(const std::string& output, const std::string& folder);

// Refuses (2) options of text where the model is none of language and gates of what is not measured of one,
// and (73) an output inside the folder that is read.
void check_for_format(const CompressOptions& options, ModelFormat format);

// The language model with the text of --eval-data, if that is given. Throws Error(2) where nothing can run
// the weights.
std::optional<TextBefore> open_text(const CompressOptions& options, ModelFormat format, const RunOptions& run,
                                    Report& report);

// The data of --eval-data, if it is given.
std::optional<Dataset> read_eval_data(const CompressOptions& options, Report& report);
// The first rows of --calib-data, if it is given: of the train split, prepared as those of --eval-data.
std::optional<Dataset> read_calibration(const std::string& path, int64_t nsamples,
                                        const CompressOptions& options, Report& report);
// Measures the program as it came and as it was written on that data.
void evaluate_programs(const torch::jit::Module& original, const torch::jit::Module& written,
                       const Dataset& data, const CompressOptions& options, Report& report);

// One line of the report's layers; `action` is what is done with those that are chosen.
LayerRecord record_of(const Decision& decision, const std::string& action, uint64_t compressed_bytes);
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

// Writes a serialized program to the output, and returns it as it was opened again before it took its place.
torch::jit::Module write_reopened(const CompressOptions& options, const RunOptions& run,
                                  const std::string& serialized, Report& report);

// What follows once the output is in place: the user's measure, gates, the log.
void conclude(const CompressOptions& options, Report& report);

}  // namespace mcompress::cli
