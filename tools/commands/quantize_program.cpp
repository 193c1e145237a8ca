#include <map>

#include <ATen/ATen.h>

#include "mcompress/methods/dynamic.h"
#include "mcompress/model/program.h"
#include "models.h"
#include "quantize.h"

namespace mcompress::cli {

namespace {

DynamicOptions method_options(const QuantizeCommand& options) {
  static const std::map<std::string, WeightType> kTypes = {
      {"int8", WeightType::kInt8}, {"float16", WeightType::kFloat16}, {"bfloat16", WeightType::kBFloat16}};
  return {kTypes.at(options.dtype), options.per_tensor, runtime_named(options.runtime)};
}

std::vector<Decision> plan_program(const std::vector<Layer>& layers, const QuantizeCommand& options) {
  std::vector<Decision> plan;
  for (const Layer& layer : layers) {
    std::string obstacle = layer.obstacle;
    const bool wide =
        layer.kind == LayerKind::kLinear && layer.weight.numel() > 0 && layer.weight.size(1) > kMaxInt8Inputs;
    if (wide && options.dtype == "int8" && options.runtime != "portable" && obstacle.empty()) {
      obstacle = fmt::format("int8 sums over its {} inputs can overflow; use --runtime portable",
                             layer.weight.size(1));
    }
    plan.push_back({layer.name, layer.kind, obstacle, identity_of(layer.weight), layer.weight.nbytes()});
  }
  decide_all(plan, options, [&](LayerKind kind) { return obstacle_of(kind, options); });
  return plan;
}

using Timings = std::map<size_t, LayerTiming>;

// Times each chosen layer as the data meets it, and leaves those in float that do not gain.
Timings keep_slow_layers(const torch::jit::Module& program, const std::vector<Layer>& layers,
                         std::vector<Decision>& plan, CompressedLayers& compressed, const Dataset& data,
                         const QuantizeCommand& options) {
  const torch::jit::Module quantized =
      replace_layers(program, layers, compressed.weights, runtime_named(options.runtime));
  Timings timings;
  const auto run = capture_inputs(program, layers, [&](size_t layer, const at::Tensor& input) {
    if (!plan[layer].reason.empty() || timings.contains(layer)) return;
    const Forward exact = [&](const at::Tensor& x) {
      return apply_layer(layers[layer], x, layers[layer].weight, layers[layer].bias);
    };
    timings.emplace(layer, time_layer(exact, packed_forward(quantized, layers[layer].name), input));
  });
  run(data.batch(0, std::min(options.eval.batch_size, data.size())));
  for (const auto& [layer, timing] : timings) plan[layer].reason = slower_than_float(timing);
  for (size_t i = 0; i < plan.size(); ++i) {
    if (plan[i].reason.empty()) continue;
    compressed.weights.erase(plan[i].name);
    compressed.errors[i].reset();
  }
  return timings;
}

}  // namespace

void quantize_program(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  const std::optional<Dataset> data = read_eval_data(options, report);
  const std::optional<Dataset> inputs =
      options.only_if_faster && !data
          ? read_calibration(options.calib_data, options.nsamples, options, report)
          : data;
  BackgroundHash hash(options.model);
  const auto program = timed(report, "load", [&] { return load_dense(options.model, run.trust_code); });
  const std::vector<Layer> layers = list_layers(program);
  std::vector<Decision> plan = plan_program(layers, options);
  evaluate_input(options, report);
  const DynamicOptions method = method_options(options);
  const auto core = [&](const at::Tensor& weight, bool multiplied) {
    return compress_weight(weight, multiplied, method);
  };
  CompressedLayers compressed =
      timed(report, "compress", [&] { return compress_layers(layers, plan, core); });
  Timings timings;
  if (options.only_if_faster) {
    timings = timed(report, "time layers",
                    [&] { return keep_slow_layers(program, layers, plan, compressed, *inputs, options); });
  }
  add_other_weights(program, layers, report);
  for (size_t i = 0; i < plan.size(); ++i) {
    const auto weight = compressed.weights.find(plan[i].name);
    report.layers.push_back(record_of(plan[i], options.dtype,
                                      weight == compressed.weights.end() ? nullptr : &weight->second,
                                      compressed.errors[i]));
    const auto timing = timings.find(i);
    if (timing != timings.end()) report.layers.back().timing = timing->second;
  }
  write_quantized(options, run, program, replace_layers(program, layers, compressed.weights, method.runtime),
                  layers, compressed.weights, data ? &*data : nullptr, hash, report);
}

}  // namespace mcompress::cli
