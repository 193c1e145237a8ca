#pragma once

#include <cstdint>
#include <optional>

#include "mcompress/measure/accuracy.h"

namespace mcompress {

class Decoder;
struct TokenWindows;

// How well a language model predicts text.
struct TextLoss {
  int64_t windows = 0, length = 0, tokens = 0;  // tokens that were predicted
  double nats = 0;                              // mean cross entropy of a token
  std::optional<double> nats_error;             // its standard error, from the means of windows; needs two
  double seconds = 0;

  double perplexity() const;
  std::optional<double> perplexity_error() const;
  double tokens_per_second() const { return static_cast<double>(windows * length) / seconds; }
};

// How far the next-token distributions of a model are from those of a reference.
struct Divergence {
  double mean = 0, p95 = 0, p99 = 0, largest = 0;  // KL(reference || model) of a token, nats
  Share same_top1;
  double right_token_change = 0;  // mean of p(right token) with the model less that with the reference
};

// Runs the model over all windows, a block at a time. Memory: a block, the hidden states of some windows, and
// the logits of some tokens.
TextLoss measure_text(const Decoder& model, const TokenWindows& windows);

// The same for two models at once, with the divergence of the first from the second. Throws Error(65) where
// their vocabularies differ in size.
struct TextComparison {
  TextLoss model, reference;
  Divergence divergence;
};
TextComparison compare_text(const Decoder& model, const Decoder& reference, const TokenWindows& windows);

}  // namespace mcompress
