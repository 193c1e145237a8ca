#include "mcompress/methods/compress.h"

#include <set>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/progress.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

void check_finite(const Layer& layer) {
  const int64_t non_finite = count_elements_of(layer.weight).non_finite;
  if (non_finite == 0) return;
  throw bad_data(
      "weight of layer '{}' holds {} values that are NaN or infinite; repair the model or pass --ignore "
      "'^{}$'",
      layer.name, non_finite, layer.name);
}

void check_range(const Layer& layer, const CompressedWeight& weight) {
  if (const auto* int8 = std::get_if<IntChannel>(&weight)) {
    constexpr float kMaxScale = 1e30F;  // sums of codes times this still fit float32
    if (int8->scale.max().item<float>() <= kMaxScale) return;
    throw bad_data("weight of layer '{}' has values beyond 1e32, whose sums overflow; use --ignore '^{}$'",
                   layer.name, layer.name);
  }
  if (count_elements_of(std::get<Dense>(weight).values).non_finite == 0) return;
  throw bad_data(
      "weight of layer '{}' has values beyond the range of float16; use --dtype bfloat16 or --ignore '^{}$'",
      layer.name, layer.name);
}

}  // namespace

CompressedLayers compress_layers(const std::vector<Layer>& layers, const std::vector<Decision>& plan,
                                 const Core& core) {
  std::set<WeightIdentity> multiplied;
  for (size_t i = 0; i < plan.size(); ++i) {
    if (layers[i].kind != LayerKind::kEmbedding) multiplied.insert(plan[i].identity);
  }
  CompressedLayers result;
  std::map<WeightIdentity, CompressedWeight> by_weight;
  Progress progress("compress", static_cast<int64_t>(plan.size()));
  for (size_t i = 0; i < plan.size(); ++i) {
    progress.step();
    result.errors.emplace_back();
    if (!plan[i].reason.empty()) continue;
    auto found = by_weight.find(plan[i].identity);
    if (found == by_weight.end()) {
      check_finite(layers[i]);
      CompressedWeight weight = core(layers[i].weight, multiplied.contains(plan[i].identity));
      check_range(layers[i], weight);
      found = by_weight.emplace(plan[i].identity, std::move(weight)).first;
    }
    result.errors.back() = error_of(layers[i].weight, found->second);
    result.weights.emplace(layers[i].name, found->second);
  }
  return result;
}

}  // namespace mcompress
