#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace mcompress {

// The score of a weight; the lowest ones become zero. kL1: |w|. kL2: the same for single weights, the
// Euclidean norm for channels. kRandom: a number made from the seed. kActivation: |w| times the norm of
// its input feature. kWanda: the same product, compared within each output row (arXiv:2306.11695).
enum class Criterion { kL1, kL2, kRandom, kWanda, kActivation };

// Which weights are compared with each other. kUnstructured: all. kGroups: of every `group` neighbours in
// a row, `kept` stay (2:4 is kept 2, group 4). kChannels: whole rows become zero.
struct SparsityPattern {
  enum class Kind { kUnstructured, kGroups, kChannels };
  Kind kind = Kind::kUnstructured;
  int64_t kept = 0, group = 0;
};
// "unstructured", "channels-zero" or "N:M". Throws Error(2).
SparsityPattern parse_pattern(const std::string& text);

struct PruneOptions {
  Criterion criterion = Criterion::kL1;
  SparsityPattern pattern;
  uint64_t seed = 0;
};

// A weight [rows, columns], rows being output channels, that is read a piece at a time.
struct PrunableWeight {
  std::string name;
  int64_t rows = 0, columns = 0;
  std::function<at::Tensor(int64_t begin, int64_t end)> read;  // [end - begin, columns] of any float type
  std::function<void()> release;                               // frees what read() mapped; may be empty
  at::Tensor input_norm;  // float32 [groups, columns] for groups of as many rows; for kWanda, kActivation
};

// Share of weights, or of channels, that become zero, or their number.
struct Amount {
  double share = 0;
  std::optional<int64_t> count;
};
// round(share * size), half to even as in Python, or the count. Throws Error(2) where that is more than
// `size`, naming `what`.
int64_t resolve_amount(const Amount& amount, int64_t size, const std::string& what);

// Tells which weights of rows [begin, end) become zero: bool [end - begin, columns], true for zero. Rows
// are asked for in order, from the first; asking for the first begins anew.
using RowMask = std::function<at::Tensor(int64_t begin, int64_t end)>;

// Masks of weights that are compared together: with one weight a layer's own, with several those of global
// pruning. The `amount` lowest scores become zero, weights that are zero already among them; equal scores
// fall as in torch.nn.utils.prune (PyTorch 2.13) up to 2^24 weights in all, else the first ones.
// Two passes over the weights in pieces, by histograms of the scores' bits: time is linear, no copy of all
// scores is made but for such ties, and the result is the same for any number of threads. Scores are float32;
// random ones do not look at the weights, so that zeros among them do not count first. kGroups needs no
// amount. Throws Error(65) naming a weight whose scores hold NaN, Error(2) where `group` does not divide the
// columns.
std::vector<RowMask> choose_zeros(const std::vector<PrunableWeight>& weights, const Amount& amount,
                                  const PruneOptions& options);

}  // namespace mcompress
