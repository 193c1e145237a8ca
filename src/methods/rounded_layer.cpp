#include "mcompress/methods/rounded_layer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "mcompress/base/process.h"
#include "mcompress/methods/grid.h"

namespace mcompress {

RoundedLayer describe_rounded(const std::string& name, const at::Tensor& weight, IntGroup rounded) {
  const QuantizationError lost = error_of(weight, rounded);
  RoundedLayer layer;
  layer.name = name;
  layer.weight = std::move(rounded);
  layer.sqnr_db = lost.sqnr_db;
  layer.max_error = lost.max_error;
  return layer;
}

RoundedLayer round_layer(const std::string& name, const at::Tensor& weight, const GptqFactor& factor,
                         const GptqOptions& options) {
  GptqResult result = gptq(weight, factor, options);
  RoundedLayer layer = describe_rounded(name, weight, std::move(result.weight));
  layer.loss = result.loss;
  layer.rounded_loss = result.rounded_loss;
  layer.damping = factor.damping;
  layer.dead_channels = factor.dead.sum().item<int64_t>();
  layer.rounded = result.rounded;
  return layer;
}

std::string line_of(const RoundedLayer& layer, double seconds_left) {
  std::string text = fmt::format("{}: loss {:.4g}, {:.3f} of rounding to nearest's", layer.name, layer.loss,
                                 layer.rounded_loss > 0 ? layer.loss / layer.rounded_loss : 1);
  if (layer.dead_channels > 0) text += fmt::format(", {} inputs always 0", layer.dead_channels);
  return text + fmt::format(", damping {:g}, {:.2f} s; {:.0f} s left, {} MB", layer.damping, layer.seconds,
                            seconds_left, peak_rss_bytes() >> 20U);
}

}  // namespace mcompress
