#pragma once

#include <map>
#include <string>

#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/compressed_weight.h"

namespace mcompress {

// The checkpoint that packed layers were made of.
class Originals {
 public:
  explicit Originals(const std::string& path);

  // Of the layer's values beside its weight here, in dB: of the best fit where scales were moved into or out
  // of its rows and columns, as AWQ does. Throws Error(65) where there is no such weight.
  double sqnr_of(const std::string& layer, const IntGroup& rounded) const;

  // What rounding to nearest gives is 6 dB a bit less some, more where a row has one scale; so much no
  // rounding would lose.
  static double least_sqnr(int bits, int64_t groups) { return 6.0 * bits - (groups > 1 ? 14 : 20); }

 private:
  CheckpointFiles files_;
  std::map<std::string, size_t> index_;
  bool transposed_;  // weights are stored [inputs, outputs]
};

}  // namespace mcompress
