#include "mcompress/methods/decoder_awq.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "decoder_run.h"
#include "mcompress/base/clock.h"
#include "mcompress/base/process.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/awq.h"
#include "mcompress/methods/grid.h"
#include "mcompress/methods/hessian.h"
#include "rounded_block.h"

namespace mcompress {

namespace {

using Stage = std::vector<DecoderLayer>;

constexpr double kLargestHalf = 65504;

// What the layers of a stage take, as float32.
struct StageInputs {
  at::Tensor hessian, mean;  // mean of x x^T and of |x|
};

// The layers of one block while scales are moved between them.
struct OpenBlock {
  int64_t number = 0;
  std::vector<Stage> stages;
  std::vector<StageInputs> inputs;
  std::map<std::string, at::Tensor> weights;
  std::map<std::string, double> plain_losses;    // of the same rounded to nearest
  std::map<std::string, at::Tensor> row_scales;  // [rows, 1], by which their rows were divided
  at::Tensor probe, expected;                    // states of some windows before the block and behind it
};

class AwqRun {
 public:
  AwqRun(const Decoder& model, const DecoderAwqPlan& plan, const CheckpointOptions& checkpoint)
      : model_(model),
        plan_(plan),
        checkpoint_(checkpoint),
        progress_("awq", static_cast<int64_t>(plan.layers.size())) {}

  int64_t run(const at::Tensor& ids) {
    const at::NoGradGuard guard;
    const int64_t blocks = model_.config().blocks;
    int64_t kept = 0, block = 0;
    try {
      hidden_ = embed_windows(model_, ids, plan_.states);
      for (; block < blocks; ++block) {
        if (resume(block)) {
          ++kept;
        } else {
          write_rounded_block(checkpoint_.path, block, checkpoint_.fingerprint, round(block));
        }
      }
      if (plan_.layers.contains(model_.config().names.head) && !resume(blocks))
        write_rounded_block(checkpoint_.path, blocks, checkpoint_.fingerprint, {{round_head()}, {}, {}});
    } catch (const Interrupted& stop) {
      if (block == 0) throw;
      throw stopped_after(stop, block, blocks, checkpoint_);
    }
    return kept;
  }

 private:
  bool resume(int64_t block) {
    if (!checkpoint_.resume) return false;
    const auto rounded = resumed_block(checkpoint_, block);
    if (!rounded) return false;
    progress_.step(static_cast<int64_t>(rounded->layers.size()));
    if (block < model_.config().blocks) model_.open_block(block, hidden_).run();
    return true;
  }

  RoundedBlock round(int64_t block) {
    OpenBlock open = run_exact(block);
    RoundedBlock result;
    for (size_t stage = 0; stage < open.stages.size(); ++stage) fold(open, stage, result);
    for (size_t stage = 0; stage < open.stages.size(); ++stage) {
      if (!rounds_some(open.stages[stage])) continue;
      Rounding rounding = prepare(open.inputs[stage].hessian);
      for (const DecoderLayer& layer : open.stages[stage]) {
        if (!plan_.layers.contains(layer.name)) continue;
        rounding.whole_range = is_query_or_key(stage, layer);
        result.layers.push_back(round_layer(layer.name, open.weights.at(layer.name), rounding));
        result.layers.back().loss = loss_in_rows(open, layer.name, result.layers.back(), rounding.hessian);
        result.layers.back().rounded_loss = open.plain_losses.at(layer.name);
        tell(result.layers.back());
      }
    }
    return result;
  }

  // Attention follows small changes of its queries and keys, whose ranges AWQ does not clip.
  bool is_query_or_key(size_t stage, const DecoderLayer& layer) const {
    const DecoderNames& names = model_.config().names;
    const bool fused = !names.query_key_value.empty() && layer.name.ends_with(names.query_key_value);
    return stage == 0 && (fused || layer.name.ends_with(names.query) || layer.name.ends_with(names.key));
  }

  // In the units of the rows as they came.
  static double loss_in_rows(const OpenBlock& open, const std::string& name, const RoundedLayer& layer,
                             const at::Tensor& hessian) {
    const at::Tensor& weight = open.weights.at(name);
    const at::Tensor values = dequantize_rows(layer.weight, 0, weight.size(0));
    const auto rows = open.row_scales.find(name);
    if (rows == open.row_scales.end()) return loss_of(weight, values, hessian);
    return loss_of(weight * rows->second, values * rows->second, hessian);
  }

  double plain_loss(const std::string& name, const at::Tensor& weight, const at::Tensor& hessian) const {
    const at::Tensor none = at::ones({weight.size(1)});
    return loss_of(weight, rounded_with_scale(weight, none, plan_.layers.at(name)), hessian);
  }

  OpenBlock run_exact(int64_t block) {
    give_back_freed_memory();
    OpenBlock open;
    open.number = block;
    open.stages = stages_of(model_.config(), block);
    const int64_t probed = std::min(plan_.probed, hidden_.size(0));
    open.probe = hidden_.slice(0, 0, probed).clone();
    DecoderBlock exact = model_.open_block(block, hidden_);
    for (size_t stage = 0; stage < open.stages.size(); ++stage) {
      const int64_t channels = open.stages[stage][0].inputs;
      const bool wanted = rounds_some(open.stages[stage]);
      HessianSum products(wanted ? channels : 0);
      at::Tensor sizes = at::zeros({wanted ? channels : 0});
      exact.run_stage(stage, [&](const at::Tensor& inputs) {
        if (!wanted) return;
        products.add(inputs);
        sizes.add_(inputs.abs().sum(0, false, at::kFloat));
      });
      if (!wanted) {
        open.inputs.emplace_back();
        continue;
      }
      open.inputs.push_back({products.mean(), sizes.div_(static_cast<double>(products.rows()))});
      for (const DecoderLayer& layer : open.stages[stage]) {
        if (!plan_.layers.contains(layer.name)) continue;
        open.weights[layer.name] = model_.layer_weight(layer.name);
        open.plain_losses[layer.name] =
            plain_loss(layer.name, open.weights[layer.name], open.inputs[stage].hessian);
      }
    }
    exact.finish();
    open.expected = hidden_.slice(0, 0, probed);
    give_back_freed_memory();
    return open;
  }

  bool rounds_some(const Stage& stage) const {
    return std::any_of(stage.begin(), stage.end(),
                       [&](const DecoderLayer& layer) { return plan_.layers.contains(layer.name); });
  }
  bool rounds_all(const Stage& stage) const {
    return std::all_of(stage.begin(), stage.end(),
                       [&](const DecoderLayer& layer) { return plan_.layers.contains(layer.name); });
  }

  // The layer whose last rows are the channels of the stage, or none where a norm gives them or nothing can
  // make up for a scale.
  const DecoderLayer* giver(const OpenBlock& open, size_t stage) const {
    const DecoderConfig& config = model_.config();
    const bool possible = stage == 1 ? config.heads == config.kv_heads
                                     : stage == 3 && (config.gated || config.activation == Activation::kRelu);
    return possible ? &open.stages[stage - 1].back() : nullptr;
  }

  void fold(OpenBlock& open, size_t stage, RoundedBlock& result) {
    const DecoderConfig& config = model_.config();
    const bool by_norm = stage == 0 || stage == 2;
    const DecoderLayer* from = giver(open, stage);
    const bool possible = rounds_all(open.stages[stage]) && (by_norm || from != nullptr) &&
                          (from == nullptr || plan_.layers.contains(from->name));
    if (!possible) return;
    check_interrupt();
    Fold fold;
    fold.from = by_norm ? config.block_name(open.number) +
                              (stage == 0 ? config.names.attention_norm : config.names.feed_forward_norm)
                        : from->name;
    std::vector<at::Tensor> weights;
    std::vector<GroupGrid> grids;
    for (const DecoderLayer& layer : open.stages[stage]) {
      fold.layers.push_back(layer.name);
      weights.push_back(open.weights.at(layer.name));
      grids.push_back(plan_.layers.at(layer.name));
    }
    const StageInputs& inputs = open.inputs[stage];
    const ScaleSearch search = search_scales(weights, grids, inputs.hessian, inputs.mean, plan_.points);
    fold.plain_loss = fold.loss = search.plain_loss;
    const ChannelScale* best = choose(search, open, stage);
    if (best != nullptr && apply(best->scale, fold.from, from, open, stage, result)) {
      fold.made = true;
      fold.loss = best->loss;
      fold.power = best->power;
      fold.by_weight = best->by_weight;
    }
    result.folds.push_back(std::move(fold));
  }

  // For a norm that several layers follow, by the block's output, of the best few.
  const ChannelScale* choose(const ScaleSearch& search, const OpenBlock& open, size_t stage) const {
    constexpr size_t kCompared = 3;
    if (search.found.empty()) return nullptr;
    if (stage == 1 || stage == 3) return search.found.data();
    double least = output_error(open, stage, at::ones_like(search.found[0].scale));
    const ChannelScale* best = nullptr;
    for (size_t i = 0; i < std::min(kCompared, search.found.size()); ++i) {
      const double error = output_error(open, stage, search.found[i].scale);
      if (error < least) {
        least = error;
        best = &search.found[i];
      }
    }
    return best;
  }

  // Squared, of the block on the probe where only the layers of this stage are rounded.
  double output_error(const OpenBlock& open, size_t stage, const at::Tensor& scale) const {
    const at::Tensor states = open.probe.clone();
    DecoderBlock block = model_.open_block(open.number, states);
    for (const DecoderLayer& layer : open.stages[stage])
      block.set_weight(layer.name,
                       rounded_with_scale(open.weights.at(layer.name), scale, plan_.layers.at(layer.name)));
    block.run();
    return (states.to(at::kFloat) - open.expected.to(at::kFloat)).square().sum(at::kDouble).item<double>();
  }

  // Moves the scale into the layers of the stage, and its inverse into the norm, or the last rows of a layer.
  // False where the norm has no number for it.
  bool apply(at::Tensor scale, const std::string& name, const DecoderLayer* from, OpenBlock& open,
             size_t stage, RoundedBlock& result) const {
    const auto changed = [&](const std::string& tensor) -> at::Tensor& {
      if (!result.changed.contains(tensor)) result.changed[tensor] = model_.stored(tensor).clone();
      return result.changed.at(tensor);
    };
    if (from == nullptr) {
      // The norm is stored in few bits, and the layers make up for what that changes: bfloat16 is exact in
      // all types that files have.
      const NormKind norm = model_.config().norm;
      const double offset = norm == NormKind::kOffsetRms ? 1 : 0;
      const at::Tensor before = model_.stored(name + ".weight") + offset;
      const at::Tensor after = (before / scale - offset).to(at::kBFloat16).to(at::kFloat);
      const at::Tensor kept = at::where(before == 0, scale, before / (after + offset));
      const bool fits = kept.isfinite().all().item<bool>() && kept.min().item<double>() > 0 &&
                        after.abs().max().item<double>() < kLargestHalf;
      if (!fits) return false;
      scale = kept;
      changed(name + ".weight") = after;
      if (norm == NormKind::kLayer) changed(name + ".bias").div_(scale);
    } else {
      at::Tensor& weight = open.weights.at(name);
      weight = weight.clone();
      weight.slice(0, weight.size(0) - scale.size(0)).div_(scale.unsqueeze(1));
      at::Tensor& rows = open.row_scales[name];
      rows = at::ones({weight.size(0), 1});
      rows.slice(0, weight.size(0) - scale.size(0)).copy_(scale.unsqueeze(1));
      if (from->biased) {
        at::Tensor& bias = changed(name + ".bias");
        bias.slice(0, bias.size(0) - scale.size(0)).div_(scale);
      }
    }
    for (const DecoderLayer& layer : open.stages[stage])
      open.weights[layer.name] = open.weights.at(layer.name) * scale;
    StageInputs& inputs = open.inputs[stage];
    inputs.hessian = inputs.hessian / (scale.unsqueeze(1) * scale);
    return true;
  }

  // What the layers of a stage are rounded with.
  struct Rounding {
    at::Tensor hessian;
    std::optional<GptqFactor> factor = {};  // of GPTQ
    bool whole_range = false;
  };
  Rounding prepare(const at::Tensor& hessian) const {
    Rounding rounding{hessian};
    if (plan_.gptq) rounding.factor = factor_hessian(hessian, *plan_.gptq);
    return rounding;
  }

  // `weight` with scales, for inputs with the same.
  RoundedLayer round_layer(const std::string& name, const at::Tensor& weight,
                           const Rounding& rounding) const {
    const auto start = Clock::now();
    check_interrupt();
    RoundedLayer layer;
    try {
      layer = rounding.factor ? by_gptq(name, weight, *rounding.factor) : to_nearest(name, weight, rounding);
    } catch (const Error& failure) {
      throw error(failure.code(), "layer '{}': {}", name, failure.what());
    }
    layer.seconds = seconds_since(start);
    return layer;
  }

  RoundedLayer by_gptq(const std::string& name, const at::Tensor& weight, const GptqFactor& factor) const {
    GptqOptions options = *plan_.gptq;
    options.grid = plan_.layers.at(name);
    return mcompress::round_layer(name, weight, factor, options);
  }

  RoundedLayer to_nearest(const std::string& name, const at::Tensor& weight, const Rounding& rounding) const {
    GroupGrid grid = plan_.layers.at(name);
    const bool clip = grid.search && !rounding.whole_range;
    grid.search = false;
    RoundedLayer layer;
    layer.name = name;
    layer.weight = clip ? round_clipped(weight, grid, rounding.hessian) : round_to_groups(weight, grid);
    const QuantizationError lost = error_of(weight, layer.weight);
    layer.sqnr_db = lost.sqnr_db;
    layer.max_error = lost.max_error;
    layer.loss = loss_of(weight, dequantize_rows(layer.weight, 0, weight.size(0)), rounding.hessian);
    layer.dead_channels = rounding.hessian.diagonal().eq(0).sum().item<int64_t>();
    return layer;
  }

  void tell(const RoundedLayer& layer) {
    progress_.step();
    progress_.line(line_of(layer, progress_.seconds_left()));
  }

  RoundedLayer round_head() {
    const std::string& head = model_.config().names.head;
    HessianSum sum(model_.config().width);
    for (int64_t i = 0; i < hidden_.size(0); ++i) {
      check_interrupt();
      sum.add(model_.head_inputs(hidden_[i]));
    }
    const at::Tensor weight = model_.layer_weight(head), hessian = sum.mean();
    RoundedLayer layer = round_layer(head, weight, prepare(hessian));
    layer.rounded_loss = plain_loss(head, weight, hessian);
    tell(layer);
    return layer;
  }

  const Decoder& model_;
  const DecoderAwqPlan& plan_;
  const CheckpointOptions& checkpoint_;
  Progress progress_;
  at::Tensor hidden_;  // [windows, length, width] behind the last block that was run
};

}  // namespace

int64_t awq_decoder(const Decoder& model, const at::Tensor& ids, const DecoderAwqPlan& plan,
                    const CheckpointOptions& checkpoint) {
  return AwqRun(model, plan, checkpoint).run(ids);
}

}  // namespace mcompress
