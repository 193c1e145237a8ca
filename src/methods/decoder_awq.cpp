#include "mcompress/methods/decoder_awq.h"

#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "awq_block.h"
#include "decoder_run.h"
#include "mcompress/base/clock.h"
#include "mcompress/base/error.h"
#include "mcompress/base/in_layer.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/awq.h"
#include "mcompress/methods/grid.h"

namespace mcompress {

namespace {

class AwqRun {
 public:
  AwqRun(const Decoder& model, const DecoderAwqPlan& plan, const CheckpointOptions& checkpoint)
      : model_(model),
        plan_(plan),
        checkpoint_(checkpoint),
        progress_("awq", static_cast<int64_t>(plan.layers.size())) {}

  int64_t run(const at::Tensor& ids) {
    const at::NoGradGuard guard;
    const int64_t blocks = model_.config().blocks;
    hidden_ = embed_windows(model_, ids, plan_.states);
    const BlockMethod method = {
        [&](int64_t block) {
          return block == blocks ? RoundedBlock{{round_head()}, {}, {}} : round(block);
        },
        [&](int64_t block, const RoundedBlock&) { model_.open_block(block, hidden_).run(); }};
    return run_blocks(method, blocks, plan_.layers.contains(model_.config().names.head), checkpoint_,
                      progress_);
  }

 private:
  RoundedBlock round(int64_t number) {
    RoundedBlock result;
    AwqBlock block(model_, plan_, number, hidden_);
    block.fold_all(result);
    for (size_t stage = 0; stage < block.stages().size(); ++stage) {
      if (!block.rounds_some(stage)) continue;
      Rounding rounding = prepare(block.hessian(stage));
      for (const DecoderLayer& layer : block.stages()[stage]) {
        if (!plan_.layers.contains(layer.name)) continue;
        rounding.whole_range = is_query_or_key(stage, layer);
        RoundedLayer rounded = round_layer(layer.name, block.weight(layer.name), rounding);
        rounded.loss = block.loss(layer.name, rounded.weight, rounding.hessian);
        rounded.rounded_loss = block.plain_loss(layer.name);
        tell(rounded);
        result.layers.push_back(std::move(rounded));
      }
    }
    return result;
  }

  // Attention follows small changes of its queries and keys, whose ranges AWQ does not clip.
  bool is_query_or_key(size_t stage, const DecoderLayer& layer) const {
    const DecoderNames& names = model_.config().names;
    const bool fused = !names.query_key_value.empty() && layer.name.ends_with(names.query_key_value);
    return stage == 0 && (fused || layer.name.ends_with(names.query) || layer.name.ends_with(names.key));
  }

  // What the layers of a stage are rounded with.
  struct Rounding {
    at::Tensor hessian;
    std::optional<GptqFactor> factor = {};  // of GPTQ
    bool whole_range = false;
  };
  Rounding prepare(const at::Tensor& hessian) const {
    Rounding rounding{hessian};
    if (plan_.gptq) rounding.factor = factor_hessian(hessian, *plan_.gptq);
    return rounding;
  }

  // `weight` with scales, for inputs with the same.
  RoundedLayer round_layer(const std::string& name, const at::Tensor& weight,
                           const Rounding& rounding) const {
    const auto start = Clock::now();
    check_interrupt();
    RoundedLayer layer = in_layer(name, [&] {
      return rounding.factor ? by_gptq(name, weight, *rounding.factor) : to_nearest(name, weight, rounding);
    });
    layer.seconds = seconds_since(start);
    return layer;
  }

  RoundedLayer by_gptq(const std::string& name, const at::Tensor& weight, const GptqFactor& factor) const {
    GptqOptions options = *plan_.gptq;
    options.grid = plan_.layers.at(name);
    return mcompress::round_layer(name, weight, factor, options);
  }

  RoundedLayer to_nearest(const std::string& name, const at::Tensor& weight, const Rounding& rounding) const {
    const GroupGrid& grid = plan_.layers.at(name);
    const bool clip = grid.search && !rounding.whole_range;
    RoundedLayer layer = describe_rounded(name, weight, round_for_awq(weight, grid, rounding.hessian, clip));
    layer.loss = loss_of(weight, dequantize_rows(layer.weight, 0, weight.size(0)), rounding.hessian);
    layer.dead_channels = rounding.hessian.diagonal().eq(0).sum().item<int64_t>();
    return layer;
  }

  void tell(const RoundedLayer& layer) {
    progress_.step();
    progress_.line(line_of(layer, progress_.seconds_left()));
  }

  RoundedLayer round_head() {
    const std::string& head = model_.config().names.head;
    const at::Tensor weight = model_.layer_weight(head), hessian = head_hessian(model_, hidden_);
    RoundedLayer layer = round_layer(head, weight, prepare(hessian));
    layer.rounded_loss = nearest_loss(weight, plan_.layers.at(head), hessian);
    tell(layer);
    return layer;
  }

  const Decoder& model_;
  const DecoderAwqPlan& plan_;
  const CheckpointOptions& checkpoint_;
  Progress progress_;
  at::Tensor hidden_;  // [windows, length, width] behind the last block that was run
};

}  // namespace

int64_t awq_decoder(const Decoder& model, const at::Tensor& ids, const DecoderAwqPlan& plan,
                    const CheckpointOptions& checkpoint) {
  return AwqRun(model, plan, checkpoint).run(ids);
}

}  // namespace mcompress
