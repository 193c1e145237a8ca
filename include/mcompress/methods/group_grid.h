#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "mcompress/model/compressed_weight.h"

namespace mcompress {

// Weights of few bits: input channels in groups, each with a scale and a zero point for every row.
//   asymmetric: scale = (max - min) / (2^bits - 1) with 0 inside the range, zero point = round(-min / scale)
//   symmetric:  scale = 2 max|w| / (2^bits - 1), zero point = 2^(bits - 1), as GPTQ has it
// A weight is scale * (code - zero point).
struct GroupGrid {
  int bits = 4;  // 2 to 8
  int64_t group_size =
      128;  // -1: all channels; where it does not divide their number the last group is smaller
  bool symmetric = false;
  // The range is narrowed by up to 35 %, and a symmetric scale may be negative, where that gives less squared
  // error, each channel weighted by its importance.
  bool search = false;
};

// Scales and zero points of one group, float64 [rows]. Scales are numbers of float16, in which files hold
// them, so that a code is that of the scale which is read again; zero points are whole numbers.
struct GroupScale {
  at::Tensor scale, zero;
};

// Of weights float64 [rows, channels]; `importance` float64 [channels], or undefined where nothing is known
// of their inputs: a search then weights each error by w^2 + 2 mean(w^2) of its group. Throws Error(65) where
// a scale would be beyond float16.
GroupScale group_scale(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& importance);

// int64 [channels]: groups of that size in order. Throws Error(2) for a group size of 0 or below -1.
at::Tensor groups_in_order(int64_t channels, int64_t group_size);

// Rounds to nearest, each group on the scale that group_scale() gives it.
IntGroup round_to_groups(const at::Tensor& weight, const GroupGrid& grid, const at::Tensor& importance = {});

}  // namespace mcompress
