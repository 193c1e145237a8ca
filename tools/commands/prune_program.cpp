#include <map>
#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/interrupt.h"
#include "mcompress/base/output.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/input_norm.h"
#include "mcompress/model/pieces.h"
#include "mcompress/model/program.h"
#include "models.h"
#include "prune.h"

namespace mcompress::cli {

namespace {

std::string weight_obstacle(const at::Tensor& weight) {
  if (weight.numel() == 0) return "its weight is empty";
  for (int64_t i = 0; i < weight.dim(); ++i) {
    if (weight.size(i) > 1 && weight.stride(i) == 0) return "its elements share their memory";
  }
  if (!at::isFloatingType(weight.scalar_type()) || weight.element_size() == 1)
    return fmt::format("its weight is {}, no float type that is pruned", c10::toString(weight.scalar_type()));
  return "";
}

std::vector<Decision> plan_program(const std::vector<Layer>& layers, const PruneCommand& options) {
  std::vector<Decision> plan;
  std::set<WeightIdentity> seen;  // weights whose inputs can be seen
  for (const Layer& layer : layers) {
    if (!layer.methods.empty()) seen.insert(identity_of(layer.weight));
  }
  for (const Layer& layer : layers) {
    std::string obstacle = weight_obstacle(layer.weight);
    if (obstacle.empty() && options.needs_inputs() && !seen.contains(identity_of(layer.weight)))
      obstacle = "its own code does not apply its weight, so its inputs are not seen";
    plan.push_back({layer.name, layer.kind, obstacle, identity_of(layer.weight), layer.weight.nbytes()});
  }
  decide_all(plan, options, [&](LayerKind kind) { return obstacle_of(kind, options); });
  keep_overlapping(plan);
  return plan;
}

using Norms = std::map<WeightIdentity, InputNorm>;

// Runs the program over the calibration data for the norms of what the chosen layers are given. Layers that
// share a weight share them.
Norms calibrate(const torch::jit::Module& program, const std::vector<Layer>& layers,
                const std::vector<Decision>& plan, const Dataset& data, int64_t batch_size) {
  Norms norms;
  for (size_t i = 0; i < plan.size(); ++i) {
    if (plan[i].reason.empty()) norms.emplace(plan[i].identity, InputNorm(layers[i]));
  }
  const auto run = capture_inputs(program, layers, [&](size_t layer, const at::Tensor& input) {
    const auto found = norms.find(plan[layer].identity);
    if (found != norms.end()) found->second.add(input);
  });
  Progress progress("calibrate", data.size());
  data.for_batches(batch_size, [&](const at::Tensor& batch, int64_t begin, int64_t end) {
    run(batch);
    progress.step(end - begin);
  });
  return norms;
}

PrunableWeight prunable(const Layer& layer) {
  const at::Tensor weight = layer.weight.detach();
  const auto read = [weight](int64_t begin, int64_t end) { return weight.slice(0, begin, end).flatten(1); };
  return {layer.name, weight.size(0), weight.numel() / weight.size(0), read, {}, {}};
}

void apply_mask(const at::Tensor& weight, const RowMask& mask) {
  for_row_pieces(0, weight.size(0), weight.numel() / weight.size(0), [&](int64_t begin, int64_t end) {
    check_interrupt();
    const at::Tensor rows = weight.detach().slice(0, begin, end);
    rows.masked_fill_(mask(begin, end).view(rows.sizes()), 0);
  });
}

ProgramWeights choose_weights(const std::vector<Layer>& layers, const std::vector<Decision>& plan,
                              const PruneCommand& options, const Norms& norms) {
  ProgramWeights chosen;
  std::set<WeightIdentity> seen;
  for (size_t i = 0; i < plan.size(); ++i) {
    if (!plan[i].reason.empty() || !seen.insert(plan[i].identity).second) continue;
    PrunableWeight weight = prunable(layers[i]);
    if (options.needs_inputs()) weight.input_norm = norms.at(plan[i].identity).norm();
    if (options.needs_inputs() && !weight.input_norm.defined()) {
      throw bad_data("layer '{}' is not used by the calibration data; leave it out with --ignore '^{}$'",
                     layers[i].name, layers[i].name);
    }
    chosen.weights.push_back(std::move(weight));
    chosen.tensors.push_back(layers[i].weight.detach());
  }
  return chosen;
}

void add_records(const std::vector<Layer>& layers, const std::vector<Decision>& plan, Report& report) {
  for (size_t i = 0; i < plan.size(); ++i) {
    LayerRecord record = record_of(plan[i], "prune", plan[i].bytes_before);
    const ElementCount count = count_elements_of(layers[i].weight.detach());
    record.parameters = count.elements;
    record.zeros = count.elements - count.nonzeros;
    report.layers.push_back(std::move(record));
  }
}

// Writes the program with its weights as bitmasks. Returns why that cannot be done; empty where it is.
std::string write_sparse(const torch::jit::Module& program, const std::set<std::string>& layers,
                         const RunOptions& run, const OutputFile& dense, OutputFile& sparse) {
  if (!make_sparse(program, layers)) return "no layer has a class that can be saved so";
  write_program(serialize_program(program), sparse);
  make_dense(program);
  try {
    const auto expanded = load_dense(sparse.temporary(), run.trust_code);
    const bool same = is_written_as(serialize_program(expanded), MappedFile(dense.temporary()).bytes());
    return same ? "" : "expanded, it would differ";
  } catch (const Error& failure) {
    if (failure.code() != Exit::kBadData) throw;
    return "it would not open again";
  }
}

torch::jit::Module write_dense(const PruneCommand& options, const RunOptions& run,
                               const std::string& serialized, Report& report) {
  OutputFile file(options.output, run.force);
  timed(report, "write", [&] { write_program(serialized, file); });
  describe_dense(file.temporary(), run, report);
  auto reopened = reopen(report, [&] { return load_program(file.temporary(), run.trust_code); });
  file.commit();
  report.output =
      describe_artifact(options.output, name_of(ModelFormat::kTorchScript), count_program(reopened));
  return reopened;
}

// Writes the pruned program as --store says, and returns it as it was opened again.
torch::jit::Module write_output(const PruneCommand& options, const RunOptions& run,
                                const torch::jit::Module& program, const std::set<std::string>& layers,
                                const std::string& serialized, Report& report) {
  if (options.store == "dense") return write_dense(options, run, serialized, report);
  OutputFile dense(options.output + ".dense", true), sparse(options.output + ".bitmask", true);
  const std::string obstacle = timed(report, "write", [&] {
    write_program(serialized, dense);
    return write_sparse(program, layers, run, dense, sparse);
  });
  if (!obstacle.empty()) {
    check_auto(options, obstacle, report);
    return write_dense(options, run, serialized, report);
  }
  auto reopened = reopen(report, [&] { return load_program(sparse.temporary(), run.trust_code); });
  OutputFile file(options.output, run.force);
  const std::string store = write_stored(options, dense, sparse, file, report);
  file.commit();
  report.output =
      describe_artifact(options.output, store == "bitmask+zstd" ? "zstd" : name_of(ModelFormat::kTorchScript),
                        count_program(reopened));
  return reopened;
}

}  // namespace

void prune_weights(const ProgramWeights& chosen, const PruneCommand& options, uint64_t seed) {
  const std::vector<RowMask> masks = choose_masks(chosen.weights, options, seed);
  for (size_t i = 0; i < masks.size(); ++i) apply_mask(chosen.tensors[i], masks[i]);
}

void prune_program(const PruneCommand& options, const RunOptions& run, Report& report) {
  const std::optional<Dataset> data = read_eval_data(options, report);
  const std::optional<Dataset> calibration =
      options.needs_inputs() ? read_calibration(options.calib_data, options.nsamples, options, report)
                             : std::nullopt;
  std::optional<Finetuning> finetuning;
  if (options.finetune && !options.dry_run) finetuning.emplace(options, run, report);
  BackgroundHash hash(options.model);
  const auto program = timed(report, "load", [&] { return load_dense(options.model, run.trust_code); });
  std::vector<Layer> layers = list_layers(program);
  const std::vector<Decision> plan = plan_program(layers, options);
  if (finetuning) finetuning->prepare(program, hash);
  evaluate_input(options, report);
  const WeightCount before = count_program(program);
  Norms norms;
  if (calibration) {
    norms = timed(report, "calibrate",
                  [&] { return calibrate(program, layers, plan, *calibration, options.eval.batch_size); });
  }
  const auto seed = static_cast<uint64_t>(run.seed);
  std::set<std::string> names;
  for (const Layer& layer : layers) names.insert(layer.name);
  {
    const ProgramWeights chosen = choose_weights(layers, plan, options, norms);
    if (!options.sweep.empty()) {
      sweep_program(program, names, chosen, data ? &*data : nullptr, options, run, report);
      report.input = describe_artifact(options.model, name_of(ModelFormat::kTorchScript), before, hash);
      return;
    }
    timed(report, "prune", [&] { prune_weights(chosen, options, seed); });
  }
  std::optional<Metrics> at_once;
  if (finetuning) {
    if (data) {
      at_once.emplace();
      at_once->accuracy = timed(report, "evaluate before training", [&] {
        return measure_accuracy(program_forward(program), *data, options.eval.batch_size);
      });
    }
    const auto trainee = load_dense(options.model, run.trust_code);
    finetuning->train(trainee, choose_weights(list_layers(trainee), plan, options, norms));
    copy_values(trainee, program);
  }
  add_records(layers, plan, report);
  sum_up(options, plan, report);
  report.pruning->at_once = at_once;
  report.input = describe_artifact(options.model, name_of(ModelFormat::kTorchScript), before, hash);
  layers.clear();  // LibTorch writes a reference for each tensor that is held elsewhere: other bytes
  const std::string serialized = timed(report, "serialize", [&] { return serialize_program(program); });
  const uint64_t dense_bytes = count_program_bytes(serialized);
  if (options.store == "dense") report.predicted_bytes = dense_bytes;
  if (options.dry_run) return finish_dry_run(run, report);

  check_output(options.output, OutputKind::kFile, run.force, run.inputs,
               bytes_to_write(options, dense_bytes));
  const auto reopened = write_output(options, run, program, names, serialized, report);
  if (data) evaluate_programs(load_program(options.model, run.trust_code), reopened, *data, options, report);
  if (finetuning) finetuning->finish();
  conclude(options, report);
}

}  // namespace mcompress::cli
