#include "quantize_static.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <ATen/ATen.h>

#include "log.h"
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

std::string obstacle_of_static(const Layer& layer) {
  const bool convolution = layer.kind == LayerKind::kConv1d || layer.kind == LayerKind::kConv2d;
  if (!layer.obstacle.empty()) return layer.obstacle;
  return convolution && !layer.convolution ? "the settings of its convolution are not constants" : "";
}

// Leaves a layer alone for a reason that came up after the plan was made.
void keep(StaticRun& state, size_t layer, const std::string& reason) {
  state.plan[layer].reason = reason;
  state.made[layer].reset();
}

// The outputs of the program with its batch normalizations folded against those of the program as it is.
double folding_error(const torch::jit::Module& program, FoldedProgram& folded, const Dataset& data) {
  constexpr int64_t kRows = 32;
  const at::Tensor batch = data.batch(0, std::min(kRows, data.size()));
  const at::Tensor exact = program_forward(program)(batch);
  const at::Tensor output = folded.run(batch, std::vector<std::optional<StaticLayer>>(folded.layers.size()));
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

// Layers by the damage that each does alone, the worst first.
std::vector<size_t> rank(const std::vector<std::optional<Damage>>& damages) {
  std::vector<size_t> order;
  for (size_t i = 0; i < damages.size(); ++i) {
    if (damages[i]) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return damages[a]->sqnr_db < damages[b]->sqnr_db; });
  return order;
}

// Looks for the fewest layers, taken by their rank, that must stay in float for the accuracy to hold.
class Tuner {
 public:
  Tuner(const torch::jit::Module& program, StaticRun& state, const std::vector<Observer>& observers,
        const Dataset& calibration, const Dataset& data, const QuantizeCommand& options, Report& report)
      : program_(program),
        state_(state),
        observers_(observers),
        calibration_(calibration),
        data_(data),
        options_(options),
        report_(report),
        order_(rank(state.damages)),
        before_(measure_accuracy(program_forward(program), data, options.eval.batch_size).top1.value()) {}

  // Doubles the number of kept layers until the gate holds, then halves the step back. Not every number is
  // tried: accuracy need not grow with it. Leaves the best that was found in the state.
  void run() {
    size_t low = 0, high = 0;  // fails, holds
    bool holds = attempt(0);
    for (size_t kept = 1; !holds && low < order_.size(); kept = std::min(2 * kept, order_.size())) {
      holds = attempt(kept);
      (holds ? high : low) = kept;
    }
    while (holds && high > low + 1) {
      const size_t middle = (low + high) / 2;
      (attempt(middle) ? high : low) = middle;
    }
    apply(best_);
    if (!best_passed_) {
      report_.warnings.push_back(fmt::format(
          "--tune found no set of layers that holds --max-accuracy-drop; the best one keeps {} in float",
          best_));
    }
  }

 private:
  MadeLayers make(size_t kept) {
    std::vector<bool> wanted = chosen_of(state_.plan);
    for (size_t i = 0; i < kept; ++i) wanted[order_[i]] = false;
    return quantize_static(state_.folded, observers_, wanted, calibration_, method_options(options_));
  }

  bool attempt(size_t kept) {
    // All layers in float have the accuracy of the program as it is.
    const bool all = kept == order_.size();
    const double top1 = all ? before_ : measure(make(kept));
    const double drop = options_.gates.drop == "relative" ? (before_ - top1) / before_ : before_ - top1;
    const bool passed = drop <= *options_.gates.max_accuracy_drop;
    Trial trial{{}, top1, passed};
    for (size_t i = 0; i < kept; ++i) trial.kept.push_back(state_.plan[order_[i]].name);
    report_.quantization->trials.push_back(trial);
    log_detail(fmt::format("trial with {} layers in float: {:.2f} %", kept, 100 * top1));
    const bool better = passed ? !best_passed_ || kept < best_ : !best_passed_ && top1 > best_top1_;
    if (better && !all) {
      best_ = kept;
      best_top1_ = top1;
      best_passed_ = passed;
    }
    return passed;
  }

  double measure(const MadeLayers& made) {
    const auto quantized =
        replace_static(program_, state_.folded.layers, made, runtime_named(options_.runtime));
    return measure_accuracy(program_forward(reload_program(quantized)), data_, options_.eval.batch_size)
        .top1.value();
  }

  void apply(size_t kept) {
    state_.made = make(kept);
    for (size_t i = 0; i < kept; ++i) {
      keep(state_, order_[i], fmt::format("kept in float by --tune, number {} by its damage", i + 1));
    }
  }

  const torch::jit::Module& program_;
  StaticRun& state_;
  const std::vector<Observer>& observers_;
  const Dataset& calibration_;
  const Dataset& data_;
  const QuantizeCommand& options_;
  Report& report_;
  std::vector<size_t> order_;
  double before_;
  size_t best_ = 0;
  double best_top1_ = -1;
  bool best_passed_ = false;
};

}  // namespace

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
      "1e-4 "
      "is allowed; leave layers with tiny variances alone with --ignore",
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

std::vector<Decision> plan_static(const std::vector<Layer>& layers, const QuantizeCommand& options) {
  std::vector<Decision> plan;
  for (const Layer& layer : layers) {
    plan.push_back({layer.name, layer.kind, obstacle_of_static(layer), identity_of(layer.weight),
                    layer.weight.nbytes()});
  }
  decide_all(plan, options, [](LayerKind /*kind*/) { return std::string(); });
  return plan;
}

StaticRun::StaticRun(const torch::jit::Module& program, const QuantizeCommand& options)
    : StaticRun(program, list_layers(program), options) {}

StaticRun::StaticRun(const torch::jit::Module& program, const std::vector<Layer>& layers,
                     const QuantizeCommand& options)
    : StaticRun(program, layers, find_followers(program, layers), plan_static(layers, options)) {}

StaticRun::StaticRun(const torch::jit::Module& program, const std::vector<Layer>& layers,
                     const FollowerList& following, std::vector<Decision> decisions)
    : plan(std::move(decisions)),
      loose(following.loose),
      folded(program, layers, chosen_of(plan), following.of_layer),
      made(layers.size()) {}

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
  const auto program = timed(report, "load", [&] { return load_program(options.model, run.trust_code); });
  make_dense(program);  // where it was stored as a bitmask
  report.quantization.emplace();
  StaticRun state(program, options);
  evaluate_input(options, report);
  const StaticOptions method = method_options(options);
  if (options.dry_run) {
    state.made = timed(report, "quantize", [&] { return quantize_unseen(state.folded, method); });
  } else {
    const std::vector<Observer> observers = timed(
        report, "calibrate", [&] { return observe(state.folded, *calibration, options.eval.batch_size); });
    check_folding(program, state, *calibration, report);
    state.made = timed(report, "quantize", [&] {
      return quantize_static(state.folded, observers, chosen_of(state.plan), *calibration, method);
    });
    keep_unseen(state);
    if (options.only_if_faster)
      timed(report, "time layers", [&] { time_layers(program, state, *calibration, options); });
    if (options.sensitivity || options.tune) {
      state.damages = timed(report, "sensitivity", [&] {
        return measure_damage(state.folded, state.made, *calibration, options.eval.batch_size);
      });
    }
    if (options.tune) {
      timed(report, "tune",
            [&] { Tuner(program, state, observers, *calibration, *data, options, report).run(); });
    }
  }
  add_other_weights(program, state.folded.layers, report);
  add_records(state, options, report);
  const auto quantized = replace_static(program, state.folded.layers, state.made, method.runtime);
  write_quantized(options, run, program, quantized, state.folded.layers, weights_of(state),
                  data ? &*data : nullptr, hash, report);
}

}  // namespace mcompress::cli
