#include "mcompress/methods/decoder_gptq.h"

#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "decoder_run.h"
#include "mcompress/base/clock.h"
#include "mcompress/base/in_layer.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/process.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/hessian.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

namespace {

using Stage = std::vector<DecoderLayer>;

class DecoderRun {
 public:
  DecoderRun(const Decoder& model, const DecoderGptqPlan& plan, const CheckpointOptions& checkpoint)
      : model_(model),
        plan_(plan),
        checkpoint_(checkpoint),
        progress_("gptq", static_cast<int64_t>(plan.layers.size())) {}

  int64_t run(const at::Tensor& ids) {
    const at::NoGradGuard guard;
    const int64_t blocks = model_.config().blocks;
    hidden_ = embed_windows(model_, ids, plan_.states);
    const BlockMethod method = {
        [&](int64_t block) {
          return RoundedBlock{block == blocks         ? round_head()
                              : plan_.true_sequential ? by_stages(block)
                                                      : at_once(block),
                              {},
                              {}};
        },
        [&](int64_t block, const RoundedBlock& rounded) { run_rounded(block, rounded.layers); }};
    return run_blocks(method, blocks, plan_.layers.contains(model_.config().names.head), checkpoint_,
                      progress_);
  }

 private:
  void run_rounded(int64_t block, const std::vector<RoundedLayer>& layers) {
    DecoderBlock opened = model_.open_block(block, hidden_);
    for (const RoundedLayer& layer : layers) set_rounded(opened, layer);
    opened.run();
  }

  std::vector<RoundedLayer> by_stages(int64_t block) {
    std::vector<RoundedLayer> result;
    DecoderBlock opened = model_.open_block(block, hidden_);
    const std::vector<Stage> stages = stages_of(model_.config(), block);
    for (size_t i = 0; i < stages.size(); ++i) {
      for (RoundedLayer& layer : round_stage(stages[i], run_stage(opened, i, stages[i]))) {
        set_rounded(opened, layer);
        result.push_back(std::move(layer));
      }
    }
    opened.finish();
    return result;
  }

  std::vector<RoundedLayer> at_once(int64_t block) {
    std::vector<RoundedLayer> result;
    {
      DecoderBlock exact = model_.open_block(block, hidden_.clone());
      const std::vector<Stage> stages = stages_of(model_.config(), block);
      for (size_t i = 0; i < stages.size(); ++i) {
        for (RoundedLayer& layer : round_stage(stages[i], run_stage(exact, i, stages[i])))
          result.push_back(std::move(layer));
      }
    }
    run_rounded(block, result);
    return result;
  }

  std::vector<RoundedLayer> round_head() {
    const DecoderConfig& config = model_.config();
    return round_stage({{config.names.head, config.vocabulary, config.width, false}},
                       head_hessian(model_, hidden_));
  }

  // The Hessian of the stage; undefined where none of its layers are rounded. What solving the stage before
  // left in the heap is given back, since the states that are held grow here.
  at::Tensor run_stage(DecoderBlock& block, size_t index, const Stage& stage) const {
    bool wanted = false;
    for (const DecoderLayer& layer : stage) wanted = wanted || plan_.layers.contains(layer.name);
    give_back_freed_memory();
    HessianSum sum(wanted ? stage[0].inputs : 0, model_.compute().int8_layers);
    block.run_stage(index, [&](const at::Tensor& inputs) {
      if (wanted) sum.add(inputs);
    });
    return wanted ? sum.mean() : at::Tensor();
  }

  std::vector<RoundedLayer> round_stage(const Stage& stage, at::Tensor hessian) {
    std::vector<RoundedLayer> result;
    std::optional<GptqFactor> factor;  // one for all, since they have the same inputs
    for (const DecoderLayer& layer : stage) {
      const auto grid = plan_.layers.find(layer.name);
      if (grid == plan_.layers.end()) continue;
      check_interrupt();
      in_layer(layer.name, [&] {
        const auto start = Clock::now();
        if (!factor) factor = factor_hessian(std::move(hessian), plan_.options);
        GptqOptions options = plan_.options;
        options.grid = grid->second;
        result.push_back(round_layer(layer.name, model_.layer_weight(layer.name), *factor, options));
        result.back().seconds = seconds_since(start);
      });
      progress_.step();
      progress_.line(line_of(result.back(), progress_.seconds_left()));
    }
    return result;
  }

  static void set_rounded(DecoderBlock& block, const RoundedLayer& layer) {
    block.set_weight(layer.name, dequantize_rows(layer.weight, 0, layer.weight.codes.size(0)));
  }

  const Decoder& model_;
  const DecoderGptqPlan& plan_;
  const CheckpointOptions& checkpoint_;
  Progress progress_;
  at::Tensor hidden_;  // [windows, length, width] behind the last block that was run
};

}  // namespace

int64_t gptq_decoder(const Decoder& model, const at::Tensor& ids, const DecoderGptqPlan& plan,
                     const CheckpointOptions& checkpoint) {
  return DecoderRun(model, plan, checkpoint).run(ids);
}

}  // namespace mcompress
