#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/output.h"
#include "mcompress/model/pieces.h"
#include "mcompress/model/program.h"
#include "models.h"
#include "quantize.h"

namespace mcompress::cli {

namespace {

// Non-zero weights of the output: those of the input, with the compressed layers counted anew.
WeightCount count_after(WeightCount count, const std::vector<Layer>& layers,
                        const std::map<std::string, CompressedWeight>& weights) {
  std::set<const void*> seen;  // parameters are counted by place
  for (const Layer& layer : layers) {
    const auto weight = weights.find(layer.name);
    if (weight == weights.end() || !seen.insert(layer.weight.data_ptr()).second) continue;
    *count.nonzeros +=
        count_elements_of(stored_values(weight->second)).nonzeros - count_elements_of(layer.weight).nonzeros;
  }
  return count;
}

}  // namespace

Runtime runtime_named(const std::string& name) {
  static const std::map<std::string, Runtime> kRuntimes = {
      {"int8", Runtime::kInt8}, {"portable", Runtime::kPortable}, {"fbgemm", Runtime::kFbgemm}};
  return kRuntimes.at(name);
}

void add_other_weights(const torch::jit::Module& program, const std::vector<Layer>& layers, Report& report) {
  std::set<std::string> listed;
  for (const Layer& layer : layers) listed.insert(layer.name.empty() ? "weight" : layer.name + ".weight");
  for (const auto& parameter : program.named_parameters()) {
    if (parameter.value.dim() >= 2 && !listed.contains(parameter.name))
      report.layers.push_back(other_weight(parameter.name, parameter.value.nbytes()));
  }
}

LayerRecord record_of(const Decision& decision, const std::string& action, const CompressedWeight* weight,
                      const std::optional<QuantizationError>& lost) {
  LayerRecord record = record_of(decision, action, weight == nullptr ? 0 : stored_bytes(*weight));
  if (weight != nullptr) {
    const ElementCount count = count_elements_of(stored_values(*weight));
    record.parameters = count.elements;
    record.zeros = count.elements - count.nonzeros;
  }
  if (lost) {
    record.sqnr_db = lost->sqnr_db;
    record.max_error = lost->max_error;
  }
  return record;
}

std::string slower_than_float(const LayerTiming& timing) {
  if (timing.integer_seconds < timing.float_seconds) return "";
  constexpr double kMilli = 1000;
  return fmt::format("int8 is no faster here: {:.3f} ms against {:.3f} ms", kMilli * timing.integer_seconds,
                     kMilli * timing.float_seconds);
}

LayerTiming time_layer(const Forward& exact, const Forward& integer, const at::Tensor& input) {
  constexpr double kSeconds = 0.02;
  const auto latencies = measure_latency({exact, integer}, input, kSeconds);
  return {latencies[0].p50, latencies[1].p50};
}

Forward packed_forward(const torch::jit::Module& program, const std::string& path) {
  const torch::jit::Module module = module_at(program, path);
  if (const auto pack = module.find_method("pack")) (*pack)({});
  return program_forward(module);
}

void write_quantized(const QuantizeCommand& options, const RunOptions& run, const torch::jit::Module& program,
                     const torch::jit::Module& quantized, const std::vector<Layer>& layers,
                     const std::map<std::string, CompressedWeight>& weights, const Dataset* data,
                     BackgroundHash& hash, Report& report) {
  const WeightCount count = count_program(program);
  report.input = describe_artifact(options.model, name_of(ModelFormat::kTorchScript), count, hash);
  const std::string serialized = timed(report, "serialize", [&] { return serialize_program(quantized); });
  report.predicted_bytes = count_program_bytes(serialized);
  if (options.dry_run) return finish_dry_run(run, report);

  check_output(options.output, OutputKind::kFile, run.force, run.inputs, *report.predicted_bytes);
  const auto reopened = write_reopened(options, run, serialized, report);
  report.output = describe_artifact(options.output, name_of(ModelFormat::kTorchScript),
                                    count_after(count, layers, weights));
  if (data != nullptr) evaluate_programs(program, reopened, *data, options, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
