#include <charconv>
#include <cmath>

#include "mcompress/base/error.h"
#include "scores.h"

namespace mcompress {

SparsityPattern parse_pattern(const std::string& text) {
  using Kind = SparsityPattern::Kind;
  if (text == "unstructured") return {};
  if (text == "channels-zero") return {Kind::kChannels, 0, 0};
  SparsityPattern pattern{Kind::kGroups, 0, 0};
  const char* end = text.data() + text.size();
  const auto kept = std::from_chars(text.data(), end, pattern.kept);
  const bool colon = kept.ec == std::errc() && kept.ptr != end && *kept.ptr == ':';
  const auto group = colon ? std::from_chars(kept.ptr + 1, end, pattern.group) : kept;
  if (!colon || group.ec != std::errc() || group.ptr != end || pattern.kept < 1 ||
      pattern.kept >= pattern.group) {
    throw error(Exit::kUsage,
                "--pattern '{}' is none of unstructured, channels-zero, and N:M with 0 < N < M, such as 2:4",
                text);
  }
  return pattern;
}

int64_t resolve_amount(const Amount& amount, int64_t size, const std::string& what) {
  if (!amount.count) return static_cast<int64_t>(std::nearbyint(amount.share * static_cast<double>(size)));
  if (*amount.count <= size) return *amount.count;
  throw error(Exit::kUsage, "--count {} is more than the {} of {}", *amount.count, size, what);
}

std::vector<RowMask> choose_zeros(const std::vector<PrunableWeight>& weights, const Amount& amount,
                                  const PruneOptions& options) {
  const bool groups = options.pattern.kind == SparsityPattern::Kind::kGroups;
  const bool by_channel = options.pattern.kind == SparsityPattern::Kind::kChannels;
  if (!groups && !by_channel && options.criterion != Criterion::kWanda)
    return cut_scores(weights, amount, options);
  std::vector<RowMask> masks;
  for (const PrunableWeight& weight : weights)
    masks.push_back(by_channel ? lowest_channels(weight, amount, options)
                               : lowest_in_runs(weight, amount, options));
  return masks;
}

}  // namespace mcompress
