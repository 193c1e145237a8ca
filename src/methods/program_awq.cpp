#include "mcompress/methods/program_awq.h"

#include <optional>

#include <ATen/ATen.h>

#include "mcompress/base/clock.h"
#include "mcompress/base/error.h"
#include "mcompress/base/in_layer.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/awq.h"
#include "mcompress/model/followers.h"
#include "mcompress/model/open_program.h"
#include "program_inputs.h"

namespace mcompress {

namespace {

class ProgramAwq {
 public:
  ProgramAwq(const std::vector<Layer>& layers, const ProgramAwqPlan& plan)
      : layers_(layers), plan_(plan), progress_("awq", static_cast<int64_t>(plan.layers.size())) {}

  void measure(const torch::jit::Module& program, const at::Tensor& batch) {
    std::vector<bool> chosen;
    for (const Layer& layer : layers_) {
      chosen.push_back(plan_.layers.contains(layer.name));
      ++uses_[identity_of(layer.weight)];
    }
    OpenProgram open(program, layers_, chosen, std::vector<bool>(layers_.size(), false));
    open.run(batch, [&](size_t index, const at::Tensor& input) {
      const Layer& layer = layers_[index];
      if (!inputs_.contains(index)) {
        order_.push_back(index);
        in_layer(layer.name, [&] { measure(index, input); });
      }
      return apply_layer(layer, input, layer.weight, layer.bias);
    });
  }

  // Moves the scale of a layer's inputs into the layer that gives them.
  void fold(size_t giver, size_t taker) {
    if (!may_scale(giver) || !may_scale(taker)) return;
    const Layer& from = layers_[giver];
    at::Tensor& rows = weights_.at(giver);
    if (rows.size(0) != weights_.at(taker).size(1)) return;
    const at::Tensor scale = scale_inputs(from.name, {taker});
    if (!scale.defined()) return;
    rows = rows / scale.unsqueeze(1);
    row_scales_[giver] = scale.unsqueeze(1);
    if (from.bias.defined()) result_.changed[from.name + ".bias"] = divided(from.bias, scale);
  }

  // The same where a norm gives them.
  void fold(const NormTakers& norm) {
    for (const size_t taker : norm.takers) {
      if (!may_scale(taker) || weights_.at(taker).size(1) != norm.weight.numel()) return;
    }
    const at::Tensor scale = scale_inputs(norm.name, norm.takers);
    if (!scale.defined()) return;
    result_.changed[norm.name + ".weight"] = divided(norm.weight, scale);
    if (norm.bias.defined()) result_.changed[norm.name + ".bias"] = divided(norm.bias, scale);
  }

  RoundedProgram round() {
    std::map<WeightIdentity, RoundedLayer> by_weight;
    for (const size_t index : order_) {
      check_interrupt();
      const auto identity = identity_of(layers_[index].weight);
      auto found = by_weight.find(identity);
      if (found == by_weight.end()) found = by_weight.emplace(identity, round_layer(index)).first;
      RoundedLayer layer = found->second;
      layer.name = layers_[index].name;
      progress_.step();
      progress_.line(line_of(layer, progress_.seconds_left()));
      result_.layers.push_back(std::move(layer));
    }
    return std::move(result_);
  }

 private:
  // What a layer is given.
  struct Inputs {
    at::Tensor hessian, mean;  // mean: of |x|, float32 [channels]
  };

  void measure(size_t index, const at::Tensor& input) {
    const at::Tensor weight = layers_[index].weight.detach().flatten(1).to(at::kFloat);
    if (!weight.isfinite().all().item<bool>()) throw bad_data("the weight has NaN or infinite values");
    const at::Tensor sizes = at::zeros({weight.size(1)});
    int64_t count = 0;
    const at::Tensor hessian = hessian_of(layers_[index], input, [&](const at::Tensor& rows) {
      sizes.add_(rows.abs().sum(0));
      count += rows.size(0);
    });
    inputs_[index] = {hessian, sizes / static_cast<double>(count)};
    weights_[index] = weight;
  }

  static at::Tensor divided(const at::Tensor& values, const at::Tensor& scale) {
    return values.detach() / scale.to(values.scalar_type());
  }

  // Multiplies the columns of layers that share their inputs; undefined where no scale loses less than none.
  at::Tensor scale_inputs(const std::string& from, const std::vector<size_t>& takers) {
    check_interrupt();
    Fold fold;
    fold.from = from;
    std::vector<at::Tensor> weights;
    std::vector<GroupGrid> grids;
    for (const size_t taker : takers) {
      const std::string& name = layers_[taker].name;
      fold.layers.push_back(name);
      weights.push_back(weights_.at(taker));
      grids.push_back(plan_.layers.at(name));
    }
    const Inputs& inputs = inputs_.at(takers[0]);
    const ScaleSearch search = in_layer(fold.layers[0], [&] {
      return search_scales(weights, grids, inputs.hessian, inputs.mean, plan_.points);
    });
    const ChannelScale& best = search.found.at(0);
    fold.plain_loss = search.plain_loss;
    fold.loss = best.loss;
    fold.power = best.power;
    fold.by_weight = best.by_weight;
    at::Tensor scale;
    if (best.loss < search.plain_loss) {
      scale = best.scale;
      for (const size_t taker : takers) {
        weights_.at(taker) = weights_.at(taker) * scale;
        at::Tensor& hessian = inputs_.at(taker).hessian;
        hessian = hessian / (scale.unsqueeze(1) * scale);
      }
      fold.made = true;
    }
    result_.folds.push_back(std::move(fold));
    return scale;
  }

  bool may_scale(size_t index) const {
    return layers_[index].kind == LayerKind::kLinear && inputs_.contains(index) &&
           uses_.at(identity_of(layers_[index].weight)) == 1;
  }

  RoundedLayer round_layer(size_t index) const {
    const auto start = Clock::now();
    const std::string& name = layers_[index].name;
    const at::Tensor &weight = weights_.at(index), &hessian = inputs_.at(index).hessian;
    const GroupGrid& grid = plan_.layers.at(name);
    RoundedLayer layer = describe_rounded(
        name, weight, in_layer(name, [&] { return round_for_awq(weight, grid, hessian, grid.search); }));
    // Losses are those of what the layer gave before its rows were scaled.
    const auto rows = row_scales_.find(index);
    const at::Tensor back = rows == row_scales_.end() ? at::ones({1, 1}) : rows->second;
    const auto loss = [&](const IntGroup& rounded) {
      return loss_of(weight * back, dequantize_rows(rounded, 0, weight.size(0)) * back, hessian);
    };
    layer.loss = loss(layer.weight);
    layer.rounded_loss = loss(round_for_awq(weight, grid, hessian, false));
    layer.dead_channels = hessian.diagonal().eq(0).sum().item<int64_t>();
    layer.seconds = seconds_since(start);
    return layer;
  }

  const std::vector<Layer>& layers_;
  const ProgramAwqPlan& plan_;
  Progress progress_;
  std::vector<size_t> order_;  // in which the program uses them first
  std::map<WeightIdentity, int> uses_;
  std::map<size_t, Inputs> inputs_;
  std::map<size_t, at::Tensor> weights_;     // float32 [rows, channels], with scales
  std::map<size_t, at::Tensor> row_scales_;  // that were taken out of rows, [rows, 1]
  RoundedProgram result_;
};

}  // namespace

RoundedProgram awq_program(const torch::jit::Module& program, const std::vector<Layer>& layers,
                           const ProgramAwqPlan& plan, const at::Tensor& batch) {
  const at::NoGradGuard guard;
  ProgramAwq awq(layers, plan);
  awq.measure(program, batch);
  for (const NormTakers& norm : find_norm_takers(program, layers)) awq.fold(norm);
  const auto takers = find_takers(program, layers);
  for (size_t giver = 0; giver < layers.size(); ++giver) {
    if (takers[giver]) awq.fold(giver, *takers[giver]);
  }
  return awq.round();
}

}  // namespace mcompress
