#include <algorithm>
#include <map>
#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/checked.h"
#include "mcompress/base/output.h"
#include "mcompress/formats/bitmask.h"
#include "mcompress/model/checkpoint.h"
#include "models.h"
#include "prune.h"

namespace mcompress::cli {

namespace {

// What becomes of the arrays: a decision for those that are weights of layers, by their index.
struct CheckpointPlan {
  std::vector<Decision> decisions;
  std::vector<size_t> arrays;
};

CheckpointPlan plan_checkpoint(const CheckpointFiles& checkpoint, const PruneCommand& options) {
  CheckpointPlan plan;
  const std::set<std::string> names = names_of(checkpoint);
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    LayerKind kind{};
    if (!guess_kind(array, kind)) continue;
    const void* place = array.bytes.empty() ? static_cast<const void*>(&array) : array.bytes.data();
    std::string obstacle = obstacle_of(array, names);
    if (std::find(array.strides.begin(), array.strides.end(), 0) != array.strides.end())
      obstacle = "its elements share their memory";
    plan.decisions.push_back({array.name,
                              kind,
                              obstacle,
                              {place, array.shape, array.strides},
                              count_elements(array.shape).value() * size_of(array.dtype)});
    plan.arrays.push_back(i);
  }
  decide_all(plan.decisions, options, [&](LayerKind kind) { return obstacle_of(kind, options); });
  keep_overlapping(plan.decisions);
  return plan;
}

PrunableWeight prunable(const Array& array, const MappedFile& map) {
  const int64_t rows = array.shape[0];
  const auto columns = static_cast<int64_t>(count_elements(array.shape).value()) / rows;
  const auto read = [&array](int64_t begin, int64_t end) { return rows_of(array, begin, end).flatten(1); };
  return {array.name, rows, columns, read, [&array, &map] { map.drop(array.bytes); }, {}};
}

// The edits that zero the chosen weights. They count the zeros of each array while they run.
std::map<size_t, EditRows> make_edits(const CheckpointFiles& checkpoint, const CheckpointPlan& plan,
                                      const PruneCommand& options, uint64_t seed,
                                      std::map<WeightIdentity, int64_t>& zeros) {
  std::vector<PrunableWeight> weights;
  std::vector<size_t> chosen;  // decisions
  std::set<WeightIdentity> seen;
  for (size_t i = 0; i < plan.decisions.size(); ++i) {
    const Decision& decision = plan.decisions[i];
    if (!decision.reason.empty() || !seen.insert(decision.identity).second) continue;
    const size_t array = plan.arrays[i];
    weights.push_back(prunable(checkpoint.arrays[array], *checkpoint.files[checkpoint.file_of[array]]));
    chosen.push_back(i);
  }
  const std::vector<RowMask> masks = choose_masks(weights, options, seed);
  std::map<size_t, EditRows> edits;
  for (size_t i = 0; i < masks.size(); ++i) {
    int64_t& count = zeros[plan.decisions[chosen[i]].identity];
    edits[plan.arrays[chosen[i]]] = [mask = masks[i], &count](const at::Tensor& rows, int64_t begin,
                                                              int64_t end) {
      at::Tensor pruned = rows.masked_fill(mask(begin, end).view(rows.sizes()), 0);
      count += pruned.numel() - count_elements_of(pruned).nonzeros;
      return pruned;
    };
  }
  return edits;
}

void add_records(const CheckpointFiles& checkpoint, const CheckpointPlan& plan,
                 const std::map<WeightIdentity, int64_t>& zeros, Report& report) {
  for (size_t i = 0; i < plan.decisions.size(); ++i) {
    const Decision& decision = plan.decisions[i];
    LayerRecord record = record_of(decision, "prune", decision.bytes_before);
    record.parameters = static_cast<int64_t>(count_elements(checkpoint.arrays[plan.arrays[i]].shape).value());
    const auto counted = zeros.find(decision.identity);
    if (counted != zeros.end()) record.zeros = counted->second;
    report.layers.push_back(std::move(record));
  }
}

WeightCount count_written(const std::string& path, ModelFormat format, Report& report) {
  return reopen(report, [&] { return count_checkpoint(read_checkpoint(path, format)); });
}

void write_folder(const PruneCommand& options, const RunOptions& run, const CheckpointFiles& checkpoint,
                  const std::map<size_t, EditRows>& edits, Report& report) {
  OutputFolder output(options.output, run.force);
  timed(report, "write", [&] { write_edited_folder(checkpoint, options.model, edits, output); });
  const WeightCount count = count_written(output.temporary(), checkpoint.format, report);
  output.commit();
  report.output = describe_artifact(options.output, name_of(checkpoint.format), count);
}

void write_dense(const PruneCommand& options, const RunOptions& run, const CheckpointFiles& checkpoint,
                 const std::map<size_t, EditRows>& edits, Report& report) {
  OutputFile file(options.output, run.force);
  timed(report, "write", [&] { write_edited(checkpoint, 0, edits, file); });
  describe_dense(file.temporary(), run, report);
  const WeightCount count = count_written(file.temporary(), checkpoint.format, report);
  file.commit();
  report.output = describe_artifact(options.output, name_of(checkpoint.format), count);
}

void write_output(const PruneCommand& options, const RunOptions& run, const CheckpointFiles& checkpoint,
                  const std::map<size_t, EditRows>& edits, bool sparse_form, Report& report) {
  const ModelFormat format = checkpoint.format;
  if (format == ModelFormat::kHuggingFace) return write_folder(options, run, checkpoint, edits, report);
  if (!sparse_form) return write_dense(options, run, checkpoint, edits, report);
  OutputFile dense(options.output + ".dense", true), sparse(options.output + ".bitmask", true);
  timed(report, "write", [&] { write_edited(checkpoint, 0, edits, dense); });
  const WeightCount count = count_written(dense.temporary(), format, report);
  timed(report, "bitmask", [&] { write_bitmask(read_checkpoint(dense.temporary(), format), sparse); });
  reopen(report, [&] { return read_checkpoint(sparse.temporary(), ModelFormat::kSafetensors); });
  OutputFile file(options.output, run.force);
  const std::string store = write_stored(options, dense, sparse, file, report);
  file.commit();
  report.output = describe_artifact(options.output,
                                    store == "dense"     ? name_of(format)
                                    : store == "bitmask" ? "bitmask"
                                                         : "zstd",
                                    count);
}

}  // namespace

void prune_checkpoint(const PruneCommand& options, ModelFormat format, const RunOptions& run,
                      Report& report) {
  if (format == ModelFormat::kHuggingFace && options.store != "dense" && options.store != "auto") {
    throw error(Exit::kUsage,
                "--store {} is not possible for a Hugging Face folder, whose readers know no bitmask; use "
                "--store dense, or prune its safetensors file alone",
                options.store);
  }
  if (options.needs_inputs()) {
    throw error(Exit::kUsage,
                "'{}' holds weights without a program, so --criterion {} cannot be used; use l1",
                options.model, options.criterion);
  }
  if (!options.sweep.empty()) {
    throw error(Exit::kUsage,
                "'{}' holds weights without a program, which --sweep could measure; pass TorchScript",
                options.model);
  }
  BackgroundHash hash(options.model);
  const CheckpointFiles checkpoint =
      timed(report, "load", [&] { return read_checkpoint(options.model, format); });
  report.warnings = checkpoint.notes;
  check_not_stored(checkpoint.metadata, options);
  const CheckpointPlan plan = plan_checkpoint(checkpoint, options);
  bool sparse_form = options.store != "dense" && format != ModelFormat::kHuggingFace;
  if (sparse_form) {
    const std::string obstacle = bitmask_obstacle(checkpoint);
    sparse_form = obstacle.empty();
    if (!sparse_form) check_auto(options, obstacle, report);
  }
  const auto text = open_text(options, format, run, report);
  evaluate_input(options, report);
  const uint64_t dense_bytes = bytes_on_disk(options.model);
  if (options.store == "dense") report.predicted_bytes = dense_bytes;
  std::map<WeightIdentity, int64_t> zeros;
  const auto edits = timed(report, "choose", [&] {
    return make_edits(checkpoint, plan, options, static_cast<uint64_t>(run.seed), zeros);
  });
  report.input = describe_artifact(options.model, name_of(format), count_checkpoint(checkpoint), hash);
  if (options.dry_run) {
    add_records(checkpoint, plan, {}, report);
    return finish_dry_run(run, report);
  }
  check_output(options.output, format == ModelFormat::kHuggingFace ? OutputKind::kFolder : OutputKind::kFile,
               run.force, run.inputs, bytes_to_write(options, dense_bytes));
  write_output(options, run, checkpoint, edits, sparse_form, report);
  add_records(checkpoint, plan, zeros, report);
  sum_up(options, plan.decisions, report);
  if (text) text->compare(options.output, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
