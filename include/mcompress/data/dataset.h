#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace mcompress {

struct DataOptions {
  std::string split = "test";        // test or train, where the data has both
  std::optional<double> scale;       // factor for every value; default 1/255 for bytes, 1 otherwise
  std::vector<double> mean, stddev;  // one a channel, after scaling
  std::string layout = "nchw";       // how images lie in .npy and safetensors: nchw or nhwc
  int64_t limit = 0;                 // first rows only; 0: all
};

// Samples, kept as they lie in the file, which is mapped where it is not packed, and normalized a batch at a
// time.
struct Dataset {
  at::Tensor inputs;  // [rows of the file, ...]; images as [rows, channels, height, width]
  at::Tensor labels;  // int64 [size()]; undefined where there are none
  DataOptions options;
  at::Tensor places = {};  // int64 [size()]: which rows of `inputs` are the samples; undefined: all

  int64_t size() const;
  at::Tensor batch(int64_t begin, int64_t end) const;  // float32; integers other than bytes stay int64
  at::Tensor raw(const at::Tensor& samples) const;     // the inputs of these samples as they lie in the file
  at::Tensor prepare(const at::Tensor& raw) const;     // the same normalized, as batch() gives them

  Dataset first(int64_t count) const;               // the first samples, at most all
  Dataset select(const at::Tensor& samples) const;  // these samples, in this order; inputs are shared

  // Calls `use` with each batch in turn and the rows that it is made of; the last may be smaller.
  void for_batches(int64_t batch_size,
                   const std::function<void(const at::Tensor& batch, int64_t begin, int64_t end)>& use) const;
};

// 0 to size - 1 in an order that the seed gives.
at::Tensor shuffled(int64_t size, uint64_t seed);

// Reads labelled data, recognised by content. Throws Error: 66 missing, 65 malformed, 2 options
// that do not fit.
//   a folder with an IDX pair (t10k-* or train-*, plain or .gz), as dataset-fashion-mnist installs it
//   an IDX file of images, with the file of labels beside it (images-idx3 -> labels-idx1)
//   a CIFAR-10 binary file
//   a .npz file or safetensors file of two arrays; two .npy files as "inputs.npy,labels.npy"
// Of two arrays, the labels are the one of rank 1 with an integer type.
Dataset load_dataset(const std::string& path, const DataOptions& options);

// The same for data whose labels, if it has any, do not matter: also one .npy file, and files of one array.
Dataset load_inputs(const std::string& path, const DataOptions& options);

}  // namespace mcompress
