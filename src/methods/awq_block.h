#pragma once

#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/methods/awq.h"
#include "mcompress/methods/decoder_awq.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// One block of a model while scales are moved between its layers.
class AwqBlock {
 public:
  using Stage = std::vector<DecoderLayer>;

  // Runs the float block, so that `hidden` becomes the states behind it, and measures what its layers take.
  AwqBlock(const Decoder& model, const DecoderAwqPlan& plan, int64_t number, const at::Tensor& hidden);

  // Moves the scales that lose less into each stage, and tells of them, and of tensors that make up for them,
  // in `result`.
  void fold_all(RoundedBlock& result);

  const std::vector<Stage>& stages() const { return stages_; }
  bool rounds_some(size_t stage) const;
  // With scales, for inputs with the same.
  const at::Tensor& weight(const std::string& layer) const { return weights_.at(layer); }
  const at::Tensor& hessian(size_t stage) const { return inputs_[stage].hessian; }

  // Of the layer once it is rounded, and of the same rounded to nearest without scales; both in the units of
  // its rows as they came.
  double loss(const std::string& layer, const IntGroup& rounded, const at::Tensor& hessian) const;
  double plain_loss(const std::string& layer) const { return plain_losses_.at(layer); }

 private:
  // What the layers of a stage take, float32: means of x x^T and of |x|.
  struct StageInputs {
    at::Tensor hessian, mean;
  };

  void measure(DecoderBlock& exact, size_t stage);
  bool rounds_all(const Stage& stage) const;
  const DecoderLayer* giver(size_t stage) const;
  void fold(size_t stage, RoundedBlock& result);
  struct Choice {
    const ChannelScale* scale = nullptr;
    double loss = 0, plain_loss = 0;
  };
  Choice choose(const ScaleSearch& search, size_t stage) const;
  double output_error(size_t stage, const at::Tensor& scale) const;
  bool apply(at::Tensor scale, const std::string& name, const DecoderLayer* from, size_t stage,
             RoundedBlock& result);

  const Decoder& model_;
  const DecoderAwqPlan& plan_;
  int64_t number_;
  std::vector<Stage> stages_;
  std::vector<StageInputs> inputs_;
  std::map<std::string, at::Tensor> weights_;
  std::map<std::string, double> plain_losses_;
  std::map<std::string, at::Tensor> row_scales_;  // [rows, 1], by which rows of a layer were divided
  at::Tensor probe_, expected_;                   // states of some windows before the block and behind it
};

}  // namespace mcompress
