#pragma once

#include <optional>
#include <vector>

#include "mcompress/data/dataset.h"
#include "mcompress/methods/observer.h"
#include "mcompress/model/followers.h"
#include "mcompress/model/open_program.h"
#include "mcompress/model/static_layer.h"

namespace mcompress {

// Static post-training quantization: weights and the inputs of layers on fixed grids, the latter chosen by
// watching calibration data (Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295).
struct StaticOptions {
  int weight_bits = 8;
  std::optional<int> activation_bits = 8;  // none: inputs stay float
  ObserverKind observer = ObserverKind::kHistogram;
  double percentile = 99.99;     // of ObserverKind::kPercentile
  bool search_weights = true;    // below 8 bits: for the scale with the least squared error of the outputs
  bool per_tensor = false;       // one scale a weight
  bool bias_correction = false;  // correct_biases() follows, so that the search leaves means out
  Runtime runtime = Runtime::kInt8;

  StaticBits bits() const { return {weight_bits, activation_bits}; }
};

// A layer in float32 with the batch normalization that followed it folded in.
struct FloatLayer {
  at::Tensor weight, bias;  // bias may be undefined
};
FloatLayer fold(const Layer& layer, const std::optional<BatchNorm>& norm);

// A program whose chosen layers have taken over what follows them, and run as functions.
struct FoldedProgram {
  std::vector<Layer> layers;
  std::vector<bool> chosen;
  std::vector<Followers> followers;
  std::vector<FloatLayer> folded;  // by layer index; empty for layers that are not chosen
  OpenProgram open;

  FoldedProgram(const torch::jit::Module& program, std::vector<Layer> all, std::vector<bool> wanted,
                std::vector<Followers> following);

  // A layer's output in float32, without the ReLU.
  at::Tensor run_layer(size_t layer, const at::Tensor& input) const;
  at::Tensor finish(size_t layer, const at::Tensor& output) const;  // the ReLU, where there is one
  // The program's output with the layers that have one in `made` as integers, and the others in float32.
  at::Tensor run(const at::Tensor& input, const StaticLayers& made);
};

// What each chosen layer is given by the first rows of `data`, by layer index.
std::vector<Observer> observe(FoldedProgram& program, const Dataset& data, int64_t batch_size);

// The chosen layers as integers. Below 8 bits, with options.search_weights, scales are those with the least
// squared error of the layer's outputs on the first rows of `data`, which may be null. A layer whose inputs
// were not seen has none.
StaticLayers quantize_static(FoldedProgram& program, const std::vector<Observer>& observers,
                             const Dataset* data, const StaticOptions& options);

// The same where no data was seen: for the size of the file alone.
StaticLayers quantize_unseen(FoldedProgram& program, const StaticOptions& options);

// Sets each channel's mean and deviation on the first rows of `data` back to what they are in the float
// program, the layers before being integers already: the mean by the bias (arXiv:1906.04721, 4.2), the
// deviation by the scale (arXiv:1810.05723, 4.2).
void correct_biases(FoldedProgram& program, StaticLayers& made, const Dataset& data);

// The SQNR, in decibel, of the program's outputs on `data` where one layer alone is made of integers; by
// layer index, empty for layers that are not made. `rows` gets the share of rows whose class is the label's.
struct Damage {
  double sqnr_db;
  std::optional<double> top1;  // where the data has labels
};
std::vector<std::optional<Damage>> measure_damage(FoldedProgram& program, const StaticLayers& made,
                                                  const Dataset& data, int64_t batch_size);

}  // namespace mcompress
