#include <algorithm>

#include "log.h"
#include "mcompress/model/program.h"
#include "quantize_static.h"

namespace mcompress::cli {

namespace {

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
  Tuner(const torch::jit::Module& program, StaticRun& state, const StaticLayers& uncorrected,
        const Dataset& calibration, const Dataset& data, const QuantizeCommand& options, Report& report)
      : program_(program),
        state_(state),
        uncorrected_(uncorrected),
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
  StaticLayers make(size_t kept) {
    StaticLayers made = uncorrected_;
    for (size_t i = 0; i < kept; ++i) made[order_[i]].reset();
    if (options_.bias_correction) correct_biases(state_.folded, made, calibration_);
    return made;
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

  double measure(const StaticLayers& made) {
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
  const StaticLayers& uncorrected_;
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

void tune(const torch::jit::Module& program, StaticRun& state, const StaticLayers& uncorrected,
          const Dataset& calibration, const Dataset& data, const QuantizeCommand& options, Report& report) {
  Tuner(program, state, uncorrected, calibration, data, options, report).run();
}

}  // namespace mcompress::cli
