#include "originals.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/json.h"
#include "mcompress/model/checkpoint.h"

namespace mcompress {

namespace {

double plain_sqnr(const at::Tensor& exact, const at::Tensor& other) {
  const double signal = exact.square().sum(at::kDouble).item<double>(),
               noise = (exact - other).square().sum(at::kDouble).item<double>();
  return noise == 0 ? 300 : 10 * std::log10(std::max(signal, 1e-300) / noise);
}

// Of the best scales of rows and columns, which AWQ moves between layers.
double fitted_sqnr(const at::Tensor& exact, at::Tensor other) {
  double best = plain_sqnr(exact, other);
  for (int round = 0; round < 2; ++round) {
    for (const int64_t over : {0, 1}) {
      const at::Tensor fit =
          (exact * other).sum(over, true) / other.square().sum(over, true).clamp_min(1e-30);
      other = other * fit;
      best = std::max(best, plain_sqnr(exact, other));
    }
  }
  return best;
}

}  // namespace

Originals::Originals(const std::string& path) : files_(read_checkpoint(path, detect_model(path))) {
  for (size_t i = 0; i < files_.arrays.size(); ++i) index_[files_.arrays[i].name] = i;
  transposed_ = files_.format == ModelFormat::kHuggingFace && model_type_of(path) == "gpt2";
}

double Originals::sqnr_of(const std::string& layer, const IntGroup& rounded) const {
  const auto found = index_.find(layer + ".weight");
  if (found == index_.end()) throw bad_data("the original has no such layer");
  const Array& array = files_.arrays[found->second];
  if (array.shape.size() != 2 || !is_floating(array.dtype))
    throw bad_data("the original's weight is no floating matrix");
  const at::Tensor stored = rows_of(array, 0, array.shape[0]).to(at::kFloat),
                   exact = transposed_ ? stored.t() : stored,
                   values = dequantize_rows(rounded, 0, rounded.codes.size(0));
  if (exact.sizes() != values.sizes())
    throw bad_data("is [{}, {}], and the original's weight [{}, {}]", values.size(0), values.size(1),
                   exact.size(0), exact.size(1));
  const double sqnr = fitted_sqnr(exact, values);
  files_.files[files_.file_of[found->second]]->drop(array.bytes);
  return sqnr;
}

}  // namespace mcompress
