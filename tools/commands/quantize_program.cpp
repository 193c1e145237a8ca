#include <map>
#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/output.h"
#include "mcompress/methods/dynamic.h"
#include "mcompress/model/pieces.h"
#include "mcompress/model/program.h"
#include "models.h"
#include "quantize.h"

namespace mcompress::cli {

namespace {

DynamicOptions method_options(const QuantizeCommand& options) {
  static const std::map<std::string, WeightType> kTypes = {
      {"int8", WeightType::kInt8}, {"float16", WeightType::kFloat16}, {"bfloat16", WeightType::kBFloat16}};
  static const std::map<std::string, Runtime> kRuntimes = {
      {"int8", Runtime::kInt8}, {"portable", Runtime::kPortable}, {"fbgemm", Runtime::kFbgemm}};
  return {kTypes.at(options.dtype), options.per_tensor, kRuntimes.at(options.runtime)};
}

void add_records(const std::vector<Decision>& plan, const CompressedLayers& compressed,
                 const QuantizeCommand& options, Report& report) {
  for (size_t i = 0; i < plan.size(); ++i) {
    const auto weight = compressed.weights.find(plan[i].name);
    const uint64_t bytes = weight == compressed.weights.end() ? 0 : stored_bytes(weight->second);
    LayerRecord record = record_of(plan[i], options.dtype, bytes);
    if (compressed.errors[i]) {
      record.sqnr_db = compressed.errors[i]->sqnr_db;
      record.max_error = compressed.errors[i]->max_error;
    }
    report.layers.push_back(std::move(record));
  }
}

// Codes or values that are not zero; scales are never zero.
int64_t count_nonzeros(const CompressedWeight& weight) {
  const auto* dense = std::get_if<Dense>(&weight);
  return count_elements_of(dense != nullptr ? dense->values : std::get<Int8Channel>(weight).codes).nonzeros;
}

// Non-zero weights of the output: those of the input, with the compressed layers counted anew.
WeightCount count_after(WeightCount count, const std::vector<Layer>& layers,
                        const std::map<std::string, CompressedWeight>& weights) {
  std::set<const void*> seen;  // parameters are counted by place
  for (const Layer& layer : layers) {
    const auto weight = weights.find(layer.name);
    if (weight == weights.end() || !seen.insert(layer.weight.data_ptr()).second) continue;
    count.nonzeros += count_nonzeros(weight->second) - count_elements_of(layer.weight).nonzeros;
  }
  return count;
}

std::vector<Decision> plan_program(const torch::jit::Module& program, const std::vector<Layer>& layers,
                                   const QuantizeCommand& options, Report& report) {
  std::vector<Decision> plan;
  std::set<std::string> listed;
  for (const Layer& layer : layers) {
    std::string obstacle = layer.obstacle;
    const bool wide =
        layer.kind == LayerKind::kLinear && layer.weight.numel() > 0 && layer.weight.size(1) > kMaxInt8Inputs;
    if (wide && options.dtype == "int8" && options.runtime != "portable" && obstacle.empty()) {
      obstacle = fmt::format("int8 sums over its {} inputs can overflow; use --runtime portable",
                             layer.weight.size(1));
    }
    plan.push_back({layer.name, layer.kind, obstacle, identity_of(layer.weight), layer.weight.nbytes()});
    listed.insert(layer.name.empty() ? "weight" : layer.name + ".weight");
  }
  decide_all(plan, options, [&](LayerKind kind) { return obstacle_of(kind, options); });
  for (const auto& parameter : program.named_parameters()) {
    if (parameter.value.dim() >= 2 && !listed.contains(parameter.name))
      report.layers.push_back(other_weight(parameter.name, parameter.value.nbytes()));
  }
  return plan;
}

}  // namespace

void quantize_program(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  const std::optional<Dataset> data = read_eval_data(options, report);
  BackgroundHash hash(options.model);
  const auto program = timed(report, "load", [&] { return load_program(options.model, run.trust_code); });
  make_dense(program);  // where it was stored as a bitmask
  const std::vector<Layer> layers = list_layers(program);
  const std::vector<Decision> plan = plan_program(program, layers, options, report);
  evaluate_input(options, report);
  const DynamicOptions method = method_options(options);
  const auto core = [&](const at::Tensor& weight, bool multiplied) {
    return compress_weight(weight, multiplied, method);
  };
  const CompressedLayers compressed =
      timed(report, "compress", [&] { return compress_layers(layers, plan, core); });
  add_records(plan, compressed, options, report);
  const WeightCount count = count_program(program);
  report.input = describe_artifact(options.model, name_of(ModelFormat::kTorchScript), count, hash);
  const std::string serialized = timed(report, "serialize", [&] {
    return serialize_program(replace_layers(program, layers, compressed.weights, method.runtime));
  });
  report.predicted_bytes = count_program_bytes(serialized);
  if (options.dry_run) return finish_dry_run(run, report);

  check_output(options.output, OutputKind::kFile, run.force, run.inputs, *report.predicted_bytes);
  OutputFile file(options.output, run.force);
  timed(report, "write", [&] { write_program(serialized, file); });
  const auto reopened = reopen(report, [&] { return load_program(file.temporary(), run.trust_code); });
  file.commit();
  report.output = describe_artifact(options.output, name_of(ModelFormat::kTorchScript),
                                    count_after(count, layers, compressed.weights));
  if (data) evaluate_programs(program, reopened, *data, options, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
