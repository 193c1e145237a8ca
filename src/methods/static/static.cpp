#include <map>
#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/progress.h"
#include "mcompress/methods/grid.h"
#include "refine.h"

namespace mcompress {

namespace {

IntChannel quantize_weight(const FloatLayer& folded, bool pairs, const StaticOptions& options) {
  const RowGrid grid{.bits = options.weight_bits, .pairs = pairs, .search = options.search_weights};
  return options.per_tensor ? quantize_tensor(folded.weight, grid) : quantize_rows(folded.weight, grid);
}

// Rounds weights by themselves. A weight of several layers stays one in the file.
class WeightRounder {
 public:
  WeightRounder(const FoldedProgram& program, const StaticOptions& options)
      : program_(program), options_(options) {
    for (size_t i = 0; i < program.layers.size(); ++i) {
      const Layer& layer = program.layers[i];
      if (program.chosen[i] && needs_pairs(layer, options.bits(), options.runtime))
        paired_.insert(identity_of(layer.weight));
    }
  }

  IntChannel round(size_t layer) {
    const WeightIdentity identity = identity_of(program_.layers[layer].weight);
    const auto round_anew = [&] {
      return quantize_weight(program_.folded[layer], paired_.contains(identity), options_);
    };
    if (program_.followers[layer].norm) return round_anew();  // which is its own once it is folded
    const auto [found, is_new] = shared_.try_emplace(identity);
    if (is_new) found->second = round_anew();
    return found->second;
  }

 private:
  const FoldedProgram& program_;
  const StaticOptions& options_;
  std::set<WeightIdentity> paired_;
  std::map<WeightIdentity, IntChannel> shared_;
};

}  // namespace

StaticLayers quantize_static(FoldedProgram& program, const std::vector<Observer>& observers,
                             const Dataset* data, const StaticOptions& options) {
  const c10::InferenceMode guard;
  std::map<size_t, IntChannel> searched;
  constexpr int kByte = 8;
  if (options.search_weights && options.weight_bits < kByte && !options.per_tensor && data != nullptr)
    searched = search_weights(program, *data, options);
  WeightRounder rounder(program, options);
  StaticLayers made(program.layers.size());
  Progress progress("quantize", static_cast<int64_t>(program.layers.size()));
  for (size_t i = 0; i < program.layers.size(); ++i) {
    progress.step();
    const bool rounds_input = options.activation_bits && program.layers[i].kind != LayerKind::kEmbedding;
    if (!program.chosen[i] || (rounds_input && observers[i].empty())) continue;
    const auto found = searched.find(i);
    made[i] = StaticLayer{found == searched.end() ? rounder.round(i) : found->second, std::nullopt,
                          program.folded[i].bias, program.followers[i].relu};
    if (!rounds_input) continue;
    const int bits = *options.activation_bits;
    made[i]->input = grid_of(observers[i].range(options.observer, bits, options.percentile), bits);
  }
  return made;
}

StaticLayers quantize_unseen(FoldedProgram& program, const StaticOptions& options) {
  std::vector<Observer> observers;
  for (const Layer& layer : program.layers) {
    observers.emplace_back(layer.name);
    observers.back().add(at::ones({1}));
  }
  return quantize_static(program, observers, nullptr, options);
}

}  // namespace mcompress
