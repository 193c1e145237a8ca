#include "mcompress/methods/program_nearest.h"

#include <ATen/ATen.h>

#include "mcompress/base/in_layer.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/progress.h"

namespace mcompress {

RoundedProgram nearest_program(const std::vector<Layer>& layers,
                               const std::map<std::string, GroupGrid>& grids) {
  Progress progress("quantize", static_cast<int64_t>(grids.size()));
  std::map<WeightIdentity, RoundedLayer> by_weight;
  RoundedProgram result;
  for (const Layer& layer : layers) {
    const auto grid = grids.find(layer.name);
    if (grid == grids.end()) continue;
    check_interrupt();
    const auto identity = identity_of(layer.weight);
    if (!by_weight.contains(identity)) {
      by_weight[identity] = in_layer(layer.name, [&] {
        const at::Tensor weight = layer.weight.detach().flatten(1).to(at::kFloat);
        if (!weight.isfinite().all().item<bool>()) throw bad_data("the weight has NaN or infinite values");
        return describe_rounded(layer.name, weight, round_to_groups(weight, grid->second));
      });
    }
    result.layers.push_back(by_weight[identity]);
    result.layers.back().name = layer.name;
    progress.step();
  }
  return result;
}

}  // namespace mcompress
