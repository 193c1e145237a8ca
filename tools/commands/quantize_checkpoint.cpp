#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/checked.h"
#include "mcompress/base/output.h"
#include "mcompress/formats/json.h"
#include "mcompress/methods/grid.h"
#include "mcompress/model/checkpoint.h"
#include "models.h"
#include "packed_plan.h"
#include "quantize.h"

namespace mcompress::cli {

namespace {

void check_checkpoint_options(const QuantizeCommand& options, ModelFormat format, Report& report) {
  if (options.runtime != "int8") {
    throw error(Exit::kUsage, "'{}' holds weights without a program, so --runtime {} means nothing",
                options.model, options.runtime);
  }
  if (format != ModelFormat::kHuggingFace || options.groups.embedding_bits == 0 || options.dtype != "int8")
    return;
  const auto config = language_config(options.model);
  if (!config) report.warnings.emplace_back(kTiedWarning);
  if (config && config->tied_head)
    throw error(
        Exit::kUsage,
        "--embeddings: the embedding of '{}' is its output layer too, which readers do not find in an "
        "int8 one; use --dtype float16, or 'mcompress convert --format gguf'",
        options.model);
}

StoredType stored_type(const QuantizeCommand& options) {
  if (options.dtype == "float16") return StoredType::kFloat16;
  if (options.dtype == "bfloat16") return StoredType::kBFloat16;
  return options.per_tensor ? StoredType::kInt8Tensor : StoredType::kInt8Rows;
}

uint64_t compressed_bytes(const Array& array, StoredType type) {
  const uint64_t elements = count_elements(array.shape).value();
  if (type == StoredType::kFloat16 || type == StoredType::kBFloat16) return 2 * elements;
  const uint64_t scales = type == StoredType::kInt8Rows ? static_cast<uint64_t>(array.shape[0]) : 1;
  return elements + scales * sizeof(float);
}

StoragePlan plan_checkpoint(const CheckpointFiles& checkpoint, const QuantizeCommand& options,
                            Report& report) {
  StoragePlan result{stored_type(options), std::vector<bool>(checkpoint.arrays.size(), false), {}, {}};
  const std::set<std::string> names = names_of(checkpoint);
  std::vector<Decision> plan;
  std::vector<size_t> indices;
  // Readers of compressed-tensors look for Linear modules, and GPT-2's layers are of another kind.
  const bool conv1d = checkpoint.format == ModelFormat::kHuggingFace && options.dtype == "int8" &&
                      model_type_of(options.model) == "gpt2";
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const uint64_t bytes = count_elements(array.shape).value() * size_of(array.dtype);
    LayerKind kind{};
    if (guess_kind(array, kind)) {
      const void* place = array.bytes.empty() ? static_cast<const void*>(&array) : array.bytes.data();
      std::string obstacle = obstacle_of(array, names);
      if (obstacle.empty() && conv1d && kind == LayerKind::kLinear)
        obstacle = "a Conv1D layer of GPT-2, which has no int8 form that readers know; use --dtype float16";
      plan.push_back({array.name, kind, obstacle, {place, array.shape, array.strides}, bytes});
      indices.push_back(i);
    } else if (is_floating(array.dtype) && array.shape.size() >= 2) {
      report.layers.push_back(other_weight(array.name, bytes));
    }
  }
  decide_all(plan, options, [&](LayerKind kind) { return obstacle_of(kind, options); });
  for (size_t i = 0; i < plan.size(); ++i) {
    result.chosen[indices[i]] = plan[i].reason.empty();
    const std::string& name = plan[i].name;
    const std::string module = name.substr(0, name.rfind('.'));
    if (!plan[i].reason.empty() && plan[i].kind == LayerKind::kLinear) result.kept_linear.push_back(module);
    if (plan[i].reason.empty() && plan[i].kind == LayerKind::kEmbedding) result.embeddings.push_back(module);
    report.layers.push_back(
        record_of(plan[i], options.dtype, compressed_bytes(checkpoint.arrays[indices[i]], result.type)));
  }
  return result;
}

}  // namespace

void quantize_checkpoint(const QuantizeCommand& options, ModelFormat format, const RunOptions& run,
                         Report& report) {
  check_checkpoint_options(options, format, report);
  const bool folder = format == ModelFormat::kHuggingFace;
  BackgroundHash hash(options.model);
  const CheckpointFiles checkpoint =
      timed(report, "load", [&] { return read_checkpoint(options.model, format); });
  report.warnings.insert(report.warnings.end(), checkpoint.notes.begin(), checkpoint.notes.end());
  check_not_stored(checkpoint.metadata, options);
  const StoragePlan plan = plan_checkpoint(checkpoint, options, report);
  const auto text = open_text(options, format, run, report);
  evaluate_input(options, report);
  report.predicted_bytes = folder ? predict_folder_bytes(checkpoint, options.model, plan)
                                  : predict_compressed_bytes(checkpoint, plan);
  report.input = describe_artifact(options.model, name_of(format), count_checkpoint(checkpoint), hash);
  if (options.dry_run) return finish_dry_run(run, report);

  const ModelFormat written = folder ? format : ModelFormat::kSafetensors;
  const auto count_written = [&](const std::string& path) {
    return reopen(report, [&] { return count_checkpoint(read_checkpoint(path, written)); });
  };
  const auto quantize = [](const at::Tensor& rows) { return quantize_rows(rows, RowGrid{}); };
  check_output(options.output, folder ? OutputKind::kFolder : OutputKind::kFile, run.force, run.inputs,
               *report.predicted_bytes);
  WeightCount count;
  if (folder) {
    OutputFolder output(options.output, run.force);
    timed(report, "write",
          [&] { write_compressed_folder(checkpoint, options.model, plan, quantize, output); });
    count = count_written(output.temporary());
    output.commit();
  } else {
    OutputFile output(options.output, run.force);
    timed(report, "write", [&] { write_compressed(checkpoint, 0, plan, quantize, output); });
    count = count_written(output.temporary());
    output.commit();
  }
  report.output = describe_artifact(options.output, name_of(written), count);
  if (text) text->compare(options.output, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
