#include "mcompress/methods/program_gptq.h"

#include <ATen/ATen.h>

#include "mcompress/base/clock.h"
#include "mcompress/base/in_layer.h"
#include "mcompress/base/progress.h"
#include "mcompress/model/open_program.h"
#include "program_inputs.h"

namespace mcompress {

RoundedProgram gptq_program(const torch::jit::Module& program, const std::vector<Layer>& layers,
                            const ProgramGptqPlan& plan, const at::Tensor& batch) {
  const at::NoGradGuard guard;
  std::vector<bool> chosen;
  for (const Layer& layer : layers) chosen.push_back(plan.layers.contains(layer.name));
  OpenProgram open(program, layers, chosen, std::vector<bool>(layers.size(), false));
  Progress progress("gptq", static_cast<int64_t>(plan.layers.size()));
  std::map<WeightIdentity, RoundedLayer> by_weight;
  RoundedProgram result;
  std::map<std::string, bool> seen;
  open.run(batch, [&](size_t index, const at::Tensor& input) {
    const Layer& layer = layers[index];
    const at::Tensor exact = layer.weight.detach();
    auto found = by_weight.find(identity_of(layer.weight));
    if (found == by_weight.end()) {
      in_layer(layer.name, [&] {
        const auto start = Clock::now();
        GptqOptions options = plan.options;
        options.grid = plan.layers.at(layer.name);
        RoundedLayer rounded = round_layer(layer.name, exact.flatten(1).to(at::kFloat),
                                           factor_hessian(hessian_of(layer, input), options), options);
        rounded.seconds = seconds_since(start);
        found = by_weight.emplace(identity_of(layer.weight), std::move(rounded)).first;
      });
    }
    if (!seen[layer.name]) {
      seen[layer.name] = true;
      result.layers.push_back(found->second);
      result.layers.back().name = layer.name;
      progress.step();
      progress.line(line_of(result.layers.back(), progress.seconds_left()));
    }
    const at::Tensor weight = plan.true_sequential ? dequantize_rows(found->second.weight, 0, exact.size(0))
                                                         .view(exact.sizes())
                                                         .to(exact.scalar_type())
                                                   : exact;
    return apply_layer(layer, input, weight, layer.bias);
  });
  return result;
}

}  // namespace mcompress
