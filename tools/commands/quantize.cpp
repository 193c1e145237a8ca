#include <algorithm>
#include <map>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "command.h"
#include "log.h"
#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/output.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/compress.h"
#include "mcompress/methods/dynamic.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/pieces.h"
#include "mcompress/model/program.h"
#include "models.h"

namespace mcompress::cli {

namespace {

struct Options {
  std::string model, output, mode = "dynamic", dtype = "int8", runtime = "int8";
  Selection selection;
  bool per_tensor = false, embeddings = false, dry_run = false;
  EvalOptions eval;
  GateOptions gates;
};

DynamicOptions method_options(const Options& options) {
  static const std::map<std::string, WeightType> kTypes = {
      {"int8", WeightType::kInt8}, {"float16", WeightType::kFloat16}, {"bfloat16", WeightType::kBFloat16}};
  static const std::map<std::string, Runtime> kRuntimes = {
      {"int8", Runtime::kInt8}, {"portable", Runtime::kPortable}, {"fbgemm", Runtime::kFbgemm}};
  return {kTypes.at(options.dtype), options.per_tensor, kRuntimes.at(options.runtime)};
}

std::string obstacle_of(LayerKind kind, const Options& options) {
  if (kind == LayerKind::kConv1d || kind == LayerKind::kConv2d) return "dynamic mode treats no convolutions";
  const bool left = kind == LayerKind::kEmbedding && !options.embeddings;
  return left ? "embeddings are left alone without --embeddings" : "";
}

void decide_all(std::vector<Decision>& plan, const Options& options) {
  decide(
      plan, options.selection, [&](LayerKind kind) { return obstacle_of(kind, options); }, options.model);
}

LayerRecord record_of(const Decision& decision, const Options& options, uint64_t compressed_bytes) {
  const bool compressed = decision.reason.empty();
  return {decision.name,
          name_of(decision.kind),
          compressed ? options.dtype : "keep",
          decision.reason,
          decision.bytes_before,
          compressed ? compressed_bytes : decision.bytes_before,
          {},
          {}};
}

void log_layers(const Report& report) {
  for (const LayerRecord& layer : report.layers) {
    log_detail(
        fmt::format("{}: {}{}", layer.name, layer.decision, layer.reason.empty() ? "" : ", " + layer.reason));
  }
}

void print_plan(const Report& report) {
  for (const LayerRecord& layer : report.layers) {
    fmt::print("{:<48} {:<10} {:>12} -> {:>12} bytes  {}\n", printable(layer.name), layer.decision,
               layer.bytes_before, layer.bytes_after, printable(layer.reason));
  }
  fmt::print("predicted output: {} bytes\n", *report.predicted_bytes);
}

void finish_dry_run(const RunOptions& run, const Report& report) {
  if (run.report != "-") print_plan(report);
}

// Codes or values that are not zero; scales are never zero.
int64_t count_nonzeros(const CompressedWeight& weight) {
  const auto* dense = std::get_if<Dense>(&weight);
  return count_elements_of(dense != nullptr ? dense->values : std::get<Int8Channel>(weight).codes).nonzeros;
}

// Non-zero weights of the output: those of the input, with the compressed layers counted anew.
WeightCount count_after(WeightCount count, const std::vector<Layer>& layers,
                        const std::map<std::string, CompressedWeight>& weights) {
  std::set<const void*> seen;
  for (const Layer& layer : layers) {
    const auto weight = weights.find(layer.name);
    if (weight == weights.end() || !seen.insert(layer.weight.data_ptr()).second) continue;
    count.nonzeros += count_nonzeros(weight->second) - count_elements_of(layer.weight).nonzeros;
  }
  return count;
}

void conclude(const Options& options, Report& report) {
  if (!options.eval.command.empty()) {
    timed(report, "evaluate command", [&] {
      if (!report.before) report.before.emplace();
      if (!report.after) report.after.emplace();
      report.before->custom = run_eval_command(options.eval.command, options.model);
      report.after->custom = run_eval_command(options.eval.command, options.output);
    });
  }
  if (report.size_ratio() < 1) report.warnings.emplace_back("the output is larger than the input");
  if (!check_gates(options.gates, report)) report.exit_code = static_cast<int>(Exit::kGateFailed);
  log_layers(report);
}

void quantize_program(const Options& options, const RunOptions& run, Report& report) {
  std::optional<Dataset> data;
  if (!options.eval.data_path.empty()) {
    data =
        timed(report, "read data", [&] { return load_dataset(options.eval.data_path, options.eval.data); });
  }
  const auto program = timed(report, "load", [&] { return load_program(options.model, run.trust_code); });
  const std::vector<Layer> layers = list_layers(program);
  std::vector<Decision> plan;
  for (const Layer& layer : layers) {
    std::string obstacle = layer.obstacle;
    if (layer.weight.scalar_type() != at::kFloat) obstacle = "its weight is not float32";
    plan.push_back({layer.name, layer.kind, obstacle, layer.weight.data_ptr(), layer.weight.nbytes()});
  }
  decide_all(plan, options);
  const DynamicOptions method = method_options(options);
  const auto core = [&](const at::Tensor& weight, bool multiplied) {
    return compress_weight(weight, multiplied, method);
  };
  const auto [weights, errors] =
      timed(report, "compress", [&] { return compress_layers(layers, plan, core); });
  for (size_t i = 0; i < plan.size(); ++i) {
    const auto weight = weights.find(plan[i].name);
    LayerRecord record =
        record_of(plan[i], options, weight == weights.end() ? 0 : stored_bytes(weight->second));
    if (errors[i]) {
      record.sqnr_db = errors[i]->sqnr_db;
      record.max_error = errors[i]->max_error;
    }
    report.layers.push_back(std::move(record));
  }
  report.predicted_bytes = predict_program_bytes(options.model, layers, weights);
  const WeightCount count = count_program(program);
  report.input = describe_artifact(options.model, ModelFormat::kTorchScript, count);
  if (options.dry_run) return finish_dry_run(run, report);

  check_output(options.output, OutputKind::kFile, run.force, options.model, *report.predicted_bytes);
  timed(report, "write", [&] {
    OutputFile file(options.output, run.force);
    save_program(replace_layers(program, layers, weights, method.runtime), file);
    file.commit();
  });
  // The numbers after speak of the artifact on disk.
  const auto reopened = timed(report, "reopen", [&] { return load_program(options.output, run.trust_code); });
  report.output =
      describe_artifact(options.output, ModelFormat::kTorchScript, count_after(count, layers, weights));
  if (data) {
    const auto metrics = timed(report, "evaluate", [&] {
      return measure_programs({program, reopened}, *data, options.eval.batch_size);
    });
    report.before = metrics[0];
    report.after = metrics[1];
  }
  conclude(options, report);
}

StoredType stored_type(const Options& options) {
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

// The plan of a checkpoint: `chosen` by array, and the names of the linear layers left alone.
struct CheckpointPlan {
  std::vector<bool> chosen;
  std::vector<std::string> kept_linear;
};

CheckpointPlan plan_checkpoint(const CheckpointFiles& checkpoint, const Options& options, Report& report) {
  std::vector<Decision> plan;
  std::vector<size_t> indices;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    LayerKind kind{};
    if (!guess_kind(array, kind)) continue;
    const uint64_t bytes = count_elements(array.shape).value() * size_of(array.dtype);
    plan.push_back({array.name, kind, array.bytes.empty() ? "it is empty" : "", array.bytes.data(), bytes});
    indices.push_back(i);
  }
  decide_all(plan, options);
  CheckpointPlan result{std::vector<bool>(checkpoint.arrays.size(), false), {}};
  for (size_t i = 0; i < plan.size(); ++i) {
    result.chosen[indices[i]] = plan[i].reason.empty();
    const std::string& name = plan[i].name;
    if (!plan[i].reason.empty() && plan[i].kind == LayerKind::kLinear)
      result.kept_linear.push_back(name.substr(0, name.rfind('.')));
    report.layers.push_back(
        record_of(plan[i], options, compressed_bytes(checkpoint.arrays[indices[i]], stored_type(options))));
  }
  return result;
}

void quantize_checkpoint(const Options& options, ModelFormat format, const RunOptions& run, Report& report) {
  if (!options.eval.data_path.empty()) {
    throw error(Exit::kUsage,
                "'{}' holds weights without a program, so --eval-data cannot be used; pass TorchScript or "
                "--eval-command",
                options.model);
  }
  const bool folder = format == ModelFormat::kHuggingFace;
  if (folder && options.embeddings && options.dtype == "int8") {
    throw error(Exit::kUsage,
                "--embeddings has no int8 form that readers of a Hugging Face folder know; leave it out");
  }
  const CheckpointFiles checkpoint =
      timed(report, "load", [&] { return read_checkpoint(options.model, format); });
  report.warnings = checkpoint.notes;
  const CheckpointPlan plan = plan_checkpoint(checkpoint, options, report);
  const StoredType type = stored_type(options);
  report.predicted_bytes = predict_checkpoint_bytes(checkpoint, plan.chosen, type);
  report.input = describe_artifact(options.model, format, count_checkpoint(checkpoint));
  if (options.dry_run) return finish_dry_run(run, report);

  const auto quantize = [](const at::Tensor& rows) { return quantize_rows(rows, Int8Grid::kRow); };
  check_output(options.output, folder ? OutputKind::kFolder : OutputKind::kFile, run.force, options.model,
               *report.predicted_bytes);
  timed(report, "write", [&] {
    if (folder) {
      OutputFolder output(options.output, run.force);
      write_compressed_folder(checkpoint, options.model, plan.chosen, type, quantize, plan.kept_linear,
                              output);
      output.commit();
    } else {
      OutputFile output(options.output, run.force);
      write_compressed(checkpoint, 0, plan.chosen, type, quantize, output);
      output.commit();
    }
  });
  const ModelFormat written = folder ? format : ModelFormat::kSafetensors;
  timed(report, "reopen", [&] {
    report.output = describe_artifact(options.output, written,
                                      count_checkpoint(read_checkpoint(options.output, written)));
  });
  conclude(options, report);
}

void check_options(const Options& options) {
  if (options.output.empty() && !options.dry_run)
    throw error(Exit::kUsage, "quantize needs -o/--output, or --dry-run");
  check_gate_options(options.gates, options.eval);
  if (options.dtype != "int8" && options.per_tensor)
    throw error(Exit::kUsage, "--per-tensor goes with --dtype int8 only");
  if (options.dtype != "int8" && options.runtime == "fbgemm")
    throw error(Exit::kUsage, "--runtime fbgemm goes with --dtype int8 only");
}

void quantize(const Options& options, const RunOptions& run, Report& report) {
  check_options(options);
  const ModelFormat format = detect_model(options.model);
  const OutputKind kind = format == ModelFormat::kHuggingFace ? OutputKind::kFolder : OutputKind::kFile;
  if (!options.dry_run) check_output(options.output, kind, run.force, options.model);
  if (format == ModelFormat::kTorchScript) {
    quantize_program(options, run, report);
  } else {
    quantize_checkpoint(options, format, run, report);
  }
}

}  // namespace

Command quantize_command() {
  auto options = std::make_shared<Options>();
  const auto add_options = [options](CLI::App& app) {
    app.add_option("model,-m,--model", options->model,
                   "Model: TorchScript, state dict, safetensors or Hugging Face folder")
        ->required();
    app.add_option(
        "-o,--output", options->output,
        "What to write: TorchScript for TorchScript, a folder for a folder, safetensors for the rest");
    app.add_option("--mode", options->mode, "dynamic: weights are narrowed, activations when they come")
        ->check(CLI::IsMember({"dynamic"}));
    app.add_option("--dtype", options->dtype, "Type of the stored weights")
        ->check(CLI::IsMember({"int8", "float16", "bfloat16"}));
    app.add_flag("--per-tensor", options->per_tensor, "One scale a weight instead of one an output channel");
    app.add_option("--runtime", options->runtime,
                   "How int8 layers compute. int8: oneDNN kernels; portable: plain operators, any CPU; "
                   "fbgemm: torch.ao's deprecated ones")
        ->check(CLI::IsMember({"int8", "portable", "fbgemm"}));
    app.add_option("--layer", options->selection.only,
                   "Only layers whose name matches this expression; repeatable")
        ->allow_extra_args(false);
    app.add_option("--ignore", options->selection.ignore, "Leave layers alone whose name matches; repeatable")
        ->allow_extra_args(false);
    app.add_flag("--embeddings", options->embeddings, "Compress embeddings too");
    app.add_flag("--dry-run", options->dry_run,
                 "Print the decision for each layer and the predicted bytes, and stop");
    add_gate_options(app, options->gates);
    add_eval_options(app, options->eval);
  };
  const auto run = [options](const RunOptions& r, Report& report) { quantize(*options, r, report); };
  return {"quantize", "Store weights in fewer bits", add_options, run};
}

}  // namespace mcompress::cli
