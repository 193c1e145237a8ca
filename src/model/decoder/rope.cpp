#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>

#include "block.h"

namespace mcompress {

namespace {

double frequency_of(const Rope& rope, int64_t rotated_width, int64_t i) {
  return 1 / std::pow(rope.theta, 2 * static_cast<double>(i) / static_cast<double>(rotated_width));
}

// The frequencies 1 / theta^(2i / width), scaled as modeling_rope_utils.py of transformers does. Dynamic
// scaling begins beyond the positions that the model was trained on.
std::vector<double> inverse_frequencies(const Rope& rope, int64_t rotated_width, int64_t length) {
  const auto width = static_cast<double>(rotated_width);
  const auto original = static_cast<double>(rope.original_positions);
  const bool is_long = length > rope.original_positions && !rope.long_divisors.empty();
  const std::vector<double>& divisors = is_long ? rope.long_divisors : rope.divisors;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < rotated_width / 2; ++i) frequencies.push_back(frequency_of(rope, rotated_width, i));
  for (size_t i = 0; i < divisors.size(); ++i) frequencies[i] /= divisors[i];
  if (rope.scaling == RopeScaling::kLinear) {
    for (double& frequency : frequencies) frequency /= rope.factor;
  }
  if (rope.scaling == RopeScaling::kLlama3) {
    const std::vector<double> stretched = llama3_divisors(rope, rotated_width);
    for (size_t i = 0; i < stretched.size(); ++i) frequencies[i] /= stretched[i];
  }
  if (rope.scaling == RopeScaling::kYarn) {
    const auto dimension_of = [&](double rotations) {
      return width * std::log(original / (rotations * 2 * M_PI)) / (2 * std::log(rope.theta));
    };
    double low = dimension_of(rope.beta_fast), high = dimension_of(rope.beta_slow);
    if (rope.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, width - 1);
    if (low == high) high += 0.001;
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const double stretched = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      frequencies[i] *= stretched / rope.factor + 1 - stretched;
    }
  }
  return frequencies;
}

}  // namespace

std::vector<double> llama3_divisors(const Rope& rope, int64_t rotated_width) {
  const auto original = static_cast<double>(rope.original_positions);
  std::vector<double> divisors;
  for (int64_t i = 0; i < rotated_width / 2; ++i) {
    const double wave = 2 * M_PI / frequency_of(rope, rotated_width, i);
    const double smooth =
        (original / wave - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    const double kept = std::clamp(smooth, 0.0, 1.0);  // 0: long waves, stretched; 1: short ones, as they are
    divisors.push_back(1 / ((1 - kept) / rope.factor + kept));
  }
  return divisors;
}

Rotation rotation_of(const Rope& rope, int64_t rotated_width, int64_t length, at::ScalarType compute) {
  const std::vector<double> frequencies = inverse_frequencies(rope, rotated_width, length);
  // transformers multiplies positions and frequencies in float32.
  const at::Tensor angles =
      at::arange(length, at::kFloat).unsqueeze(1) * at::tensor(frequencies, at::kDouble).to(at::kFloat);
  const double factor = rope.attention_factor;
  return {(angles.cos() * factor).to(compute).unsqueeze(1), (angles.sin() * factor).to(compute).unsqueeze(1)};
}

}  // namespace mcompress
