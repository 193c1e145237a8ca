#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "mcompress/base/progress.h"
#include "mcompress/methods/static.h"

namespace mcompress {

std::vector<std::optional<Damage>> measure_damage(FoldedProgram& program, const StaticLayers& made,
                                                  const Dataset& data, int64_t batch_size) {
  struct Sums {
    double noise = 0;
    int64_t hits = 0;
  };
  std::vector<Sums> sums(made.size());
  double signal = 0;
  const StaticLayers none(made.size());
  const auto count =
      std::count_if(made.begin(), made.end(), [](const auto& layer) { return layer.has_value(); });
  Progress progress("sensitivity", data.size() * count);
  data.for_batches(batch_size, [&](const at::Tensor& batch, int64_t begin, int64_t end) {
    const at::Tensor exact = program.run(batch, none);
    signal += exact.square().sum(at::kDouble).item<double>();
    for (size_t i = 0; i < made.size(); ++i) {
      if (!made[i]) continue;
      StaticLayers one(made.size());
      one[i] = made[i];
      const at::Tensor output = program.run(batch, one);
      sums[i].noise += (output - exact).square().sum(at::kDouble).item<double>();
      if (data.labels.defined() && output.dim() == 2)
        sums[i].hits += (output.argmax(1) == data.labels.slice(0, begin, end)).sum().item<int64_t>();
      progress.step(end - begin);
    }
  });
  std::vector<std::optional<Damage>> result(made.size());
  for (size_t i = 0; i < made.size(); ++i) {
    if (!made[i]) continue;
    result[i] = Damage{10.0 * std::log10(signal / sums[i].noise), std::nullopt};
    if (data.labels.defined())
      result[i]->top1 = static_cast<double>(sums[i].hits) / static_cast<double>(data.size());
  }
  return result;
}

}  // namespace mcompress
