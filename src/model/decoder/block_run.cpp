#include "block_run.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace {

// Calls `use` for some windows after the other.
void for_parts(const at::Tensor& hidden, const std::function<void(int64_t begin, int64_t end)>& use) {
  const int64_t count = hidden.size(0), together = std::max<int64_t>(1, kTokens / hidden.size(1));
  for (int64_t begin = 0; begin < count; begin += together) {
    check_interrupt();
    use(begin, std::min(begin + together, count));
  }
}

// Throws for the first of the windows [n, length, width] that is not finite.
void check_finite(const at::Tensor& x, const std::string& path, const std::string& what,
                  int64_t first_window) {
  if (x.sum({1, 2}, false, at::kFloat).isfinite().all().item<bool>()) return;
  for (int64_t i = 0; i < x.size(0); ++i) {
    if (!x[i].isfinite().all().item<bool>())
      throw bad_data("'{}': {} NaN or infinity for window {}", path, what, first_window + i + 1);
  }
}

}  // namespace

void set_layer(const StoredLayer& layer, const at::Tensor& weight, const DecoderCompute& compute,
               BlockWeights& block) {
  const at::Tensor values = weight.to(compute.type);
  int64_t first = 0;
  for (const StoredLayer::Part& part : layer.parts) {
    Projection& projection = block.*part.layer;
    projection.weight = values.narrow(0, first, part.outputs).contiguous();
    if (compute.int8_layers) {
      projection.round();
    } else {
      projection.pack(kTokens);
    }
    first += part.outputs;
  }
}

DecoderBlock::DecoderBlock(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
// The pages of its weights, which may have been read again.
DecoderBlock::~DecoderBlock() {
  if (impl_) impl_->source.give_back(impl_->config.block_name(impl_->block));
}
DecoderBlock::DecoderBlock(DecoderBlock&&) noexcept = default;

void DecoderBlock::run_stage(size_t stage, const std::function<void(const at::Tensor& inputs)>& use) {
  const BlockPass pass = impl_->pass();
  const at::Tensor& hidden = impl_->hidden;
  at::Tensor& between = impl_->between;
  const StoredLayer layer = stored_layers(impl_->config)[stage][0];
  if (stage == 1 || stage == 3)
    between = at::empty({hidden.size(0), hidden.size(1), layer.inputs}, hidden.options());
  for_parts(hidden, [&](int64_t begin, int64_t end) {
    at::Tensor part = impl_->computing(hidden.slice(0, begin, end)), inputs;
    switch (stage) {
      case 0: inputs = pass.attention_inputs(part); break;
      case 1: inputs = pass.attention(pass.attention_inputs(part)); break;
      case 2:
        part =
            pass.add_attention(part, impl_->computing(between.slice(0, begin, end))).to(hidden.scalar_type());
        hidden.slice(0, begin, end).copy_(part);
        part = impl_->computing(part);
        inputs = pass.feed_forward_inputs(part);
        break;
      default: inputs = pass.feed_forward(pass.feed_forward_inputs(part)); break;
    }
    check_finite(
        inputs, impl_->path,
        fmt::format("the inputs of layer '{}{}' are", impl_->config.block_name(impl_->block), layer.name),
        impl_->first_window + begin);
    if (stage == 1 || stage == 3) between.slice(0, begin, end).copy_(inputs);
    use(inputs.flatten(0, 1));
  });
  if (stage == 2) between = at::Tensor();
}

void DecoderBlock::finish() {
  for_parts(impl_->hidden, [&](int64_t begin, int64_t end) {
    const at::Tensor part = impl_->hidden.slice(0, begin, end);
    part.copy_(impl_->pass().add_feed_forward(impl_->computing(part),
                                              impl_->computing(impl_->between.slice(0, begin, end))));
    check_finite(part, impl_->path, fmt::format("block {} gives", impl_->block), impl_->first_window + begin);
  });
  impl_->between = at::Tensor();
}

void DecoderBlock::run() {
  const BlockPass pass = impl_->pass();
  for_parts(impl_->hidden, [&](int64_t begin, int64_t end) {
    const at::Tensor part = impl_->hidden.slice(0, begin, end), before = impl_->computing(part);
    const at::Tensor mixed = impl_->kept(pass.attention(pass.attention_inputs(before)));
    const at::Tensor middle = impl_->kept(pass.add_attention(before, mixed));
    const at::Tensor inner = impl_->kept(pass.feed_forward(pass.feed_forward_inputs(middle)));
    const at::Tensor result = pass.add_feed_forward(middle, inner);
    check_finite(result, impl_->path, fmt::format("block {} gives", impl_->block),
                 impl_->first_window + begin);
    part.copy_(result);
  });
}

void DecoderBlock::set_weight(const std::string& layer, const at::Tensor& weight) {
  const std::string prefix = impl_->config.block_name(impl_->block);
  for (const auto& stage : stored_layers(impl_->config)) {
    for (const StoredLayer& stored : stage) {
      if (prefix + stored.name == layer) set_layer(stored, weight, impl_->compute, impl_->weights);
    }
  }
}

}  // namespace mcompress
