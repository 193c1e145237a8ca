#include "quantize_static.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <ATen/ATen.h>

#include "mcompress/methods/static.h"
#include "mcompress/model/program.h"
#include "models.h"
#include "quantize.h"

namespace mcompress::cli {

namespace {

std::vector<bool> chosen_of(const std::vector<Decision>& plan) {
  std::vector<bool> chosen;
  for (const Decision& decision : plan) chosen.push_back(decision.reason.empty());
  return chosen;
}

std::vector<Decision> plan_static(const std::vector<Layer>& layers, const QuantizeCommand& options) {
  std::vector<Decision> plan;
  for (const Layer& layer : layers) {
    plan.push_back(
        {layer.name, layer.kind, obstacle_to_open(layer), identity_of(layer.weight), layer.weight.nbytes()});
  }
  decide_all(plan, options, [](LayerKind /*kind*/) { return std::string(); });
  return plan;
}

// The outputs of the program with its batch normalizations folded against those of the program as it is.
double folding_error(const torch::jit::Module& program, FoldedProgram& folded, const Dataset& data) {
  constexpr int64_t kRows = 32;
  const at::Tensor batch = data.batch(0, std::min(kRows, data.size()));
  const at::Tensor exact = program_forward(program)(batch);
  const at::Tensor output = folded.run(batch, StaticLayers(folded.layers.size()));
  const double largest = exact.abs().max().item<double>();
  return largest == 0 ? 0 : (output - exact).abs().max().item<double>() / largest;
}

void time_layers(const torch::jit::Module& program, StaticRun& state, const Dataset& data,
                 const QuantizeCommand& options) {
  const torch::jit::Module quantized =
      replace_static(program, state.folded.layers, state.made, runtime_named(options.runtime));
  const c10::InferenceMode guard;
  const at::Tensor batch = data.batch(0, std::min(options.eval.batch_size, data.size()));
  state.folded.open.run(batch, [&](size_t layer, const at::Tensor& input) {
    const auto exact = [&](const at::Tensor& x) {
      return state.folded.finish(layer, state.folded.run_layer(layer, x));
    };
    if (state.made[layer] && !state.timings.contains(layer)) {
      const Forward integer = packed_forward(quantized, state.folded.layers[layer].name);
      state.timings.emplace(layer, time_layer(exact, integer, input));
    }
    return exact(input);
  });
  for (const auto& [layer, timing] : state.timings) {
    const std::string reason = slower_than_float(timing);
    if (!reason.empty()) keep(state, layer, reason);
  }
}

}  // namespace

void keep(StaticRun& state, size_t layer, const std::string& reason) {
  state.plan[layer].reason = reason;
  state.made[layer].reset();
}

void keep_unseen(StaticRun& state) {
  for (size_t i = 0; i < state.plan.size(); ++i) {
    if (state.plan[i].reason.empty() && !state.made[i])
      state.plan[i].reason = "the calibration data does not reach it";
  }
}

void check_folding(const torch::jit::Module& program, StaticRun& state, const Dataset& data, Report& report) {
  constexpr double kMaxError = 1e-4;
  const double lost = folding_error(program, state.folded, data);
  if (!std::isfinite(lost))
    throw bad_data("the model's outputs on the calibration data hold NaN or infinity");
  report.quantization->folding_error = lost;
  if (lost <= kMaxError) return;
  throw bad_data(
      "folding batch normalization into the layers before moves the outputs by {:.2g} of the largest, and "
      "1e-4 is allowed; leave layers with tiny variances alone with --ignore",
      lost);
}

StaticOptions method_options(const QuantizeCommand& options) {
  static const std::map<std::string, ObserverKind> kObservers = {
      {"minmax", ObserverKind::kMinMax},
      {"moving-average", ObserverKind::kMovingAverage},
      {"histogram", ObserverKind::kHistogram},
      {"percentile", ObserverKind::kPercentile},
      {"mse", ObserverKind::kMse}};
  StaticOptions method;
  method.weight_bits = static_cast<int>(options.weight_bits);
  method.activation_bits.reset();
  if (options.activation_bits != "none") method.activation_bits = std::stoi(options.activation_bits);
  method.observer = kObservers.at(options.observer);
  method.percentile = options.percentile;
  method.search_weights = options.weight_observer == "mse";
  method.per_tensor = options.per_tensor;
  method.bias_correction = options.bias_correction;
  method.runtime = runtime_named(options.runtime);
  return method;
}

StaticRun start_static(const torch::jit::Module& program, const QuantizeCommand& options) {
  const std::vector<Layer> layers = list_layers(program);
  std::vector<Decision> plan = plan_static(layers, options);
  const FollowerList following = find_followers(program, layers);
  FoldedProgram folded(program, layers, chosen_of(plan), following.of_layer);
  return {std::move(plan), following.loose, std::move(folded), StaticLayers(layers.size()), {}, {}};
}

void add_records(const StaticRun& state, const QuantizeCommand& options, Report& report) {
  const std::string action = fmt::format("int{}", options.weight_bits);
  for (size_t i = 0; i < state.plan.size(); ++i) {
    const auto& made = state.made[i];
    std::optional<CompressedWeight> weight;
    std::optional<QuantizationError> lost;
    if (made) {
      weight = made->weight;
      if (options.mode == "static") lost = error_of(state.folded.folded[i].weight, *weight);
    }
    LayerRecord record = record_of(state.plan[i], action, weight ? &*weight : nullptr, lost);
    if (made && made->input) record.input = *made->input;
    if (const auto timing = state.timings.find(i); timing != state.timings.end())
      record.timing = timing->second;
    if (!state.damages.empty() && state.damages[i])
      record.damage = LayerDamage{state.damages[i]->sqnr_db, state.damages[i]->top1};
    report.layers.push_back(std::move(record));
    const auto& norm = state.folded.followers[i].norm;
    if (!norm) continue;
    const uint64_t bytes = 4 * norm->mean.nbytes();  // weight, bias, mean, variance
    if (made) {
      ++report.quantization->folded_norms;
      report.layers.push_back({norm->name, "batch_norm", "fold", "", bytes, 0});
    } else {
      const std::string reason = fmt::format("'{}' before it is kept", state.plan[i].name);
      report.layers.push_back({norm->name, "batch_norm", "keep", reason, bytes, bytes});
    }
  }
  for (const LooseNorm& norm : state.loose)
    report.layers.push_back({norm.name, "batch_norm", "keep", norm.reason, norm.bytes, norm.bytes});
}

namespace {

// What follows once it is known which layers can be integers: correction, ranking, trials.
void refine(const torch::jit::Module& program, StaticRun& state, const Dataset& calibration,
            const Dataset* data, const QuantizeCommand& options, Report& report) {
  const StaticLayers uncorrected = state.made;
  if (options.bias_correction)
    timed(report, "correct biases", [&] { correct_biases(state.folded, state.made, calibration); });
  if (options.sensitivity || options.tune) {
    state.damages = timed(report, "sensitivity", [&] {
      return measure_damage(state.folded, state.made, calibration, options.eval.batch_size);
    });
  }
  if (options.tune)
    timed(report, "tune", [&] { tune(program, state, uncorrected, calibration, *data, options, report); });
}

}  // namespace

std::map<std::string, CompressedWeight> weights_of(const StaticRun& state) {
  std::map<std::string, CompressedWeight> weights;
  for (size_t i = 0; i < state.made.size(); ++i) {
    if (state.made[i]) weights.emplace(state.plan[i].name, state.made[i]->weight);
  }
  return weights;
}

void quantize_program_static(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  const std::optional<Dataset> data = read_eval_data(options, report);
  const std::optional<Dataset> calibration =
      read_calibration(options.calib_data, options.nsamples, options, report);
  BackgroundHash hash(options.model);
  const auto program = timed(report, "load", [&] { return load_dense(options.model, run.trust_code); });
  report.quantization.emplace();
  StaticRun state = start_static(program, options);
  evaluate_input(options, report);
  const StaticOptions method = method_options(options);
  if (options.dry_run) {
    state.made = timed(report, "quantize", [&] { return quantize_unseen(state.folded, method); });
  } else {
    const std::vector<Observer> observers = timed(
        report, "calibrate", [&] { return observe(state.folded, *calibration, options.eval.batch_size); });
    check_folding(program, state, *calibration, report);
    state.made = timed(report, "quantize",
                       [&] { return quantize_static(state.folded, observers, &*calibration, method); });
    keep_unseen(state);
    if (options.only_if_faster)
      timed(report, "time layers", [&] { time_layers(program, state, *calibration, options); });
    refine(program, state, *calibration, data ? &*data : nullptr, options, report);
  }
  add_other_weights(program, state.folded.layers, report);
  add_records(state, options, report);
  const auto quantized = replace_static(program, state.folded.layers, state.made, method.runtime);
  write_quantized(options, run, program, quantized, state.folded.layers, weights_of(state),
                  data ? &*data : nullptr, hash, report);
}

}  // namespace mcompress::cli
