#include "mcompress/methods/decoder_nearest.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include "decoder_run.h"
#include "mcompress/base/clock.h"
#include "mcompress/base/in_layer.h"
#include "mcompress/base/progress.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

namespace {

// The sum over inputs of their squares, float64 [channels].
class SquareSum {
 public:
  // Rows in their order, whatever the number of threads.
  void add(const at::Tensor& inputs) {
    const at::Tensor values = inputs.to(at::kFloat).contiguous();
    const int64_t rows = values.size(0), channels = values.size(1);
    if (!sum_.defined()) sum_ = at::zeros({channels}, at::kDouble);
    constexpr int64_t kGrain = 64;
    at::parallel_for(0, channels, kGrain, [&](int64_t begin, int64_t end) {
      double* sum = sum_.data_ptr<double>();
      for (int64_t row = 0; row < rows; ++row) {
        const float* x = values.const_data_ptr<float>() + row * channels;
        for (int64_t c = begin; c < end; ++c) sum[c] += static_cast<double>(x[c]) * x[c];
      }
    });
    rows_ += rows;
  }
  at::Tensor mean() const { return sum_ / static_cast<double>(std::max<int64_t>(1, rows_)); }

 private:
  at::Tensor sum_;
  int64_t rows_ = 0;
};

double loss_of(const at::Tensor& weight, const IntGroup& rounded, const at::Tensor& importance) {
  const at::Tensor lost = dequantize_rows(rounded, 0, weight.size(0)).to(at::kDouble) - weight;
  return (lost.square() * importance).sum().item<double>();
}

class NearestRun {
 public:
  NearestRun(const Decoder& model, const DecoderNearestPlan& plan, const CheckpointOptions& checkpoint)
      : model_(model),
        plan_(plan),
        checkpoint_(checkpoint),
        progress_("quantize", static_cast<int64_t>(plan.layers.size())) {}

  int64_t run(const at::Tensor& ids) {
    const at::NoGradGuard guard;
    const DecoderConfig& config = model_.config();
    hidden_ = embed_windows(model_, ids, plan_.states);
    const BlockMethod method = {
        [&](int64_t block) {
          return RoundedBlock{block == config.blocks ? round_head() : round_block(block), {}, {}};
        },
        [&](int64_t block, const RoundedBlock&) { model_.open_block(block, hidden_).run(); }};
    return run_blocks(method, config.blocks, plan_.layers.contains(config.names.head), checkpoint_,
                      progress_);
  }

 private:
  std::vector<RoundedLayer> round_block(int64_t number) {
    std::vector<RoundedLayer> result;
    DecoderBlock block = model_.open_block(number, hidden_);
    const auto stages = stages_of(model_.config(), number);
    for (size_t i = 0; i < stages.size(); ++i) {
      SquareSum squares;
      block.run_stage(i, [&](const at::Tensor& inputs) { squares.add(inputs); });
      for (const DecoderLayer& layer : stages[i]) {
        if (plan_.layers.contains(layer.name)) result.push_back(round_layer(layer.name, squares.mean()));
      }
    }
    block.finish();
    return result;
  }

  std::vector<RoundedLayer> round_head() {
    SquareSum squares;
    for_head_inputs(model_, hidden_, [&](const at::Tensor& inputs) { squares.add(inputs); });
    return {round_layer(model_.config().names.head, squares.mean())};
  }

  RoundedLayer round_layer(const std::string& name, const at::Tensor& squares) {
    // A group whose channels had no inputs is rounded as if all counted alike.
    constexpr double kLeast = 1e-6;
    const double mean = squares.mean().item<double>();
    const at::Tensor importance = mean > 0 ? squares.clamp_min(kLeast * mean) : at::ones_like(squares);
    const auto start = Clock::now();
    const at::Tensor weight = model_.layer_weight(name);
    GroupGrid grid = plan_.layers.at(name);
    RoundedLayer layer = in_layer(name, [&] {
      RoundedLayer rounded = describe_rounded(name, weight, round_to_groups(weight, grid, importance));
      rounded.loss = loss_of(weight, rounded.weight, squares);
      grid.search = false;
      rounded.rounded_loss = loss_of(weight, round_to_groups(weight, grid), squares);
      return rounded;
    });
    layer.dead_channels = squares.eq(0).sum().item<int64_t>();
    layer.seconds = seconds_since(start);
    progress_.step();
    progress_.line(line_of(layer, progress_.seconds_left()));
    return layer;
  }

  const Decoder& model_;
  const DecoderNearestPlan& plan_;
  const CheckpointOptions& checkpoint_;
  Progress progress_;
  at::Tensor hidden_;  // [windows, length, width] behind the last block that was run
};

}  // namespace

int64_t nearest_decoder(const Decoder& model, const at::Tensor& ids, const DecoderNearestPlan& plan,
                        const CheckpointOptions& checkpoint) {
  return NearestRun(model, plan, checkpoint).run(ids);
}

}  // namespace mcompress
