#include "mcompress/methods/dynamic.h"

#include <ATen/ATen.h>

#include "mcompress/methods/grid.h"

namespace mcompress {

CompressedWeight compress_weight(const at::Tensor& weight, bool is_linear, const DynamicOptions& options) {
  if (options.dtype == WeightType::kFloat16) return Dense{weight.detach().to(at::kHalf)};
  if (options.dtype == WeightType::kBFloat16) return Dense{weight.detach().to(at::kBFloat16)};
  const bool by_kernel = is_linear && runtime_of(weight, options.runtime) != Runtime::kPortable;
  const RowGrid grid{.pairs = by_kernel};
  return options.per_tensor ? quantize_tensor(weight, grid) : quantize_rows(weight, grid);
}

}  // namespace mcompress
