#include "awq_block.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>

#include "mcompress/base/interrupt.h"
#include "mcompress/base/process.h"
#include "mcompress/methods/awq.h"
#include "mcompress/methods/hessian.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

AwqBlock::AwqBlock(const Decoder& model, const DecoderAwqPlan& plan, int64_t number, const at::Tensor& hidden)
    : model_(model), plan_(plan), number_(number), stages_(stages_of(model.config(), number)) {
  give_back_freed_memory();
  const int64_t probed = std::min(plan.probed, hidden.size(0));
  probe_ = hidden.slice(0, 0, probed).clone();
  DecoderBlock exact = model.open_block(number, hidden);
  for (size_t stage = 0; stage < stages_.size(); ++stage) measure(exact, stage);
  exact.finish();
  expected_ = hidden.slice(0, 0, probed);
  give_back_freed_memory();
}

void AwqBlock::measure(DecoderBlock& exact, size_t stage) {
  const bool wanted = rounds_some(stage);
  const int64_t channels = wanted ? stages_[stage][0].inputs : 0;
  HessianSum products(channels, model_.compute().int8_layers);
  const at::Tensor sizes = at::zeros({channels});
  exact.run_stage(stage, [&](const at::Tensor& inputs) {
    if (!wanted) return;
    products.add(inputs);
    sizes.add_(inputs.abs().sum(0, false, at::kFloat));
  });
  inputs_.emplace_back();
  if (!wanted) return;
  inputs_.back() = {products.mean(), sizes / static_cast<double>(products.rows())};
  for (const DecoderLayer& layer : stages_[stage]) {
    const auto grid = plan_.layers.find(layer.name);
    if (grid == plan_.layers.end()) continue;
    // Not where the file is mapped, whose pages are given back with the block.
    weights_[layer.name] = model_.layer_weight(layer.name).clone();
    plain_losses_[layer.name] = nearest_loss(weights_[layer.name], grid->second, inputs_.back().hessian);
  }
}

void AwqBlock::fold_all(RoundedBlock& result) {
  for (size_t stage = 0; stage < stages_.size(); ++stage) fold(stage, result);
}

double AwqBlock::loss(const std::string& layer, const IntGroup& rounded, const at::Tensor& hessian) const {
  const at::Tensor& weight = weights_.at(layer);
  const at::Tensor values = dequantize_rows(rounded, 0, weight.size(0));
  const auto rows = row_scales_.find(layer);
  if (rows == row_scales_.end()) return loss_of(weight, values, hessian);
  return loss_of(weight * rows->second, values * rows->second, hessian);
}

bool AwqBlock::rounds_some(size_t stage) const {
  return std::any_of(stages_[stage].begin(), stages_[stage].end(),
                     [&](const DecoderLayer& layer) { return plan_.layers.contains(layer.name); });
}

bool AwqBlock::rounds_all(const Stage& stage) const {
  return std::all_of(stage.begin(), stage.end(),
                     [&](const DecoderLayer& layer) { return plan_.layers.contains(layer.name); });
}

// The layer whose last rows are the channels of the stage, or none where a norm gives them or nothing can
// make up for a scale.
const DecoderLayer* AwqBlock::giver(size_t stage) const {
  const DecoderConfig& config = model_.config();
  const bool possible = stage == 1 ? config.heads == config.kv_heads
                                   : stage == 3 && (config.gated || config.activation == Activation::kRelu);
  return possible ? &stages_[stage - 1].back() : nullptr;
}

void AwqBlock::fold(size_t stage, RoundedBlock& result) {
  const DecoderConfig& config = model_.config();
  const bool by_norm = stage == 0 || stage == 2;
  const DecoderLayer* from = giver(stage);
  const bool possible = rounds_all(stages_[stage]) && (by_norm || from != nullptr) &&
                        (from == nullptr || plan_.layers.contains(from->name));
  if (!possible) return;
  check_interrupt();
  Fold fold;
  fold.from = by_norm ? config.block_name(number_) +
                            (stage == 0 ? config.names.attention_norm : config.names.feed_forward_norm)
                      : from->name;
  std::vector<at::Tensor> weights;
  std::vector<GroupGrid> grids;
  for (const DecoderLayer& layer : stages_[stage]) {
    fold.layers.push_back(layer.name);
    weights.push_back(weights_.at(layer.name));
    grids.push_back(plan_.layers.at(layer.name));
  }
  const StageInputs& inputs = inputs_[stage];
  const ScaleSearch search = search_scales(weights, grids, inputs.hessian, inputs.mean, plan_.points);
  const Choice best = choose(search, stage);
  fold.plain_loss = best.plain_loss;
  fold.loss = best.loss;
  fold.power = best.scale->power;
  fold.by_weight = best.scale->by_weight;
  fold.made = best.loss < best.plain_loss && apply(best.scale->scale, fold.from, from, stage, result);
  result.folds.push_back(std::move(fold));
}

// Behind a norm by the block's output, of the few that are best by H, where those lose less than none.
AwqBlock::Choice AwqBlock::choose(const ScaleSearch& search, size_t stage) const {
  constexpr size_t kCompared = 3;
  const ChannelScale& first = search.found.at(0);
  if (stage == 1 || stage == 3 || !(first.loss < search.plain_loss))
    return {&first, first.loss, search.plain_loss};
  Choice best{&first, output_error(stage, first.scale), output_error(stage, at::ones_like(first.scale))};
  for (size_t i = 1; i < std::min(kCompared, search.found.size()); ++i) {
    if (!(search.found[i].loss < search.plain_loss)) break;
    const double error = output_error(stage, search.found[i].scale);
    if (error < best.loss) {
      best.scale = &search.found[i];
      best.loss = error;
    }
  }
  return best;
}

// Squared, of the block on the probe where only the layers of this stage are rounded.
double AwqBlock::output_error(size_t stage, const at::Tensor& scale) const {
  const at::Tensor states = probe_.clone();
  DecoderBlock block = model_.open_block(number_, states);
  for (const DecoderLayer& layer : stages_[stage])
    block.set_weight(layer.name,
                     rounded_with_scale(weights_.at(layer.name), scale, plan_.layers.at(layer.name)));
  block.run();
  return (states.to(at::kFloat) - expected_.to(at::kFloat)).square().sum(at::kDouble).item<double>();
}

// Moves the scale into the layers of the stage, and its inverse into the norm, or the last rows of a layer.
// False where the norm has no number for it.
bool AwqBlock::apply(at::Tensor scale, const std::string& name, const DecoderLayer* from, size_t stage,
                     RoundedBlock& result) {
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
    at::Tensor& weight = weights_.at(name);
    weight = weight.clone();
    weight.slice(0, weight.size(0) - scale.size(0)).div_(scale.unsqueeze(1));
    at::Tensor& rows = row_scales_[name];
    rows = at::ones({weight.size(0), 1});
    rows.slice(0, weight.size(0) - scale.size(0)).copy_(scale.unsqueeze(1));
    if (from->biased) {
      at::Tensor& bias = changed(name + ".bias");
      bias.slice(0, bias.size(0) - scale.size(0)).div_(scale);
    }
  }
  for (const DecoderLayer& layer : stages_[stage]) weights_[layer.name] = weights_.at(layer.name) * scale;
  StageInputs& inputs = inputs_[stage];
  inputs.hessian = inputs.hessian / (scale.unsqueeze(1) * scale);
  return true;
}

}  // namespace mcompress
