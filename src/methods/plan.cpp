#include "mcompress/methods/plan.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "mcompress/base/error.h"
#include "mcompress/base/pattern.h"

namespace mcompress {

namespace {

bool any_matches(const std::vector<Pattern>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const Pattern& p) { return p.matches(name); });
}

std::vector<Pattern> read_patterns(const std::vector<std::string>& expressions,
                                   const std::vector<Decision>& plan, const char* option) {
  std::vector<Pattern> patterns;
  for (const std::string& expression : expressions) {
    patterns.emplace_back(expression);
    const bool used = std::any_of(plan.begin(), plan.end(),
                                  [&](const Decision& d) { return patterns.back().matches(d.name); });
    if (!used)
      throw error(Exit::kUsage, "{} '{}' matches no layer; 'mcompress inspect' lists their names", option,
                  expression);
  }
  return patterns;
}

void keep_shared_weights_together(std::vector<Decision>& plan) {
  std::map<WeightIdentity, std::string> kept;
  for (const Decision& decision : plan) {
    if (!decision.reason.empty()) kept.emplace(decision.identity, decision.name);
  }
  for (Decision& decision : plan) {
    const auto other = kept.find(decision.identity);
    if (decision.reason.empty() && other != kept.end()) {
      decision.reason = fmt::format("shares its weight with '{}', which is kept", other->second);
    }
  }
}

// "conv1 and 4 more: treats no convolutions; fc: matched by --ignore"
std::string summarize_reasons(const std::vector<Decision>& plan) {
  std::vector<std::string> reasons;  // in the order of the layers
  std::map<std::string, std::vector<std::string>> layers;
  for (const Decision& decision : plan) {
    auto& names = layers[decision.reason];
    if (names.empty()) reasons.push_back(decision.reason);
    names.push_back(decision.name);
  }
  std::string text;
  for (const std::string& reason : reasons) {
    const auto& names = layers[reason];
    const std::string more = names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : "";
    text += fmt::format("{}'{}'{}: {}", text.empty() ? "" : "; ", names.front(), more, reason);
  }
  return text.empty() ? "it has no linear, convolution or embedding layer; a frozen or already quantized "
                        "model hides its weights"
                      : text;
}

// The bytes from the first element of a weight to the end of its last.
struct Extent {
  const std::byte *begin, *end;

  explicit Extent(const Decision& decision)
      : begin(static_cast<const std::byte*>(decision.identity.data)), end(begin) {
    const std::vector<int64_t>&sizes = decision.identity.sizes, &strides = decision.identity.strides;
    const auto elements = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
    if (elements == 0) return;
    int64_t last = strides.empty() ? elements - 1 : 0;
    for (size_t i = 0; i < strides.size(); ++i) last += (sizes[i] - 1) * strides[i];
    end += (last + 1) * (static_cast<int64_t>(decision.bytes_before) / elements);
  }
  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

}  // namespace

void decide(std::vector<Decision>& plan, const Selection& selection,
            const std::function<std::string(LayerKind)>& obstacle_of, const std::string& model) {
  const auto only = read_patterns(selection.only, plan, "--layer");
  const auto ignore = read_patterns(selection.ignore, plan, "--ignore");
  for (Decision& decision : plan) {
    const std::string of_kind = obstacle_of(decision.kind);
    if (!of_kind.empty()) decision.reason = of_kind;
    if (any_matches(ignore, decision.name)) decision.reason = "matched by --ignore";
    if (!only.empty() && !any_matches(only, decision.name)) decision.reason = "not matched by --layer";
  }
  keep_shared_weights_together(plan);
  const bool any = std::any_of(plan.begin(), plan.end(), [](const Decision& d) { return d.reason.empty(); });
  if (!any) throw bad_data("'{}' has nothing to compress: {}", model, summarize_reasons(plan));
}

void keep_overlapping(std::vector<Decision>& plan) {
  for (size_t i = 0; i < plan.size(); ++i) {
    if (!plan[i].reason.empty()) continue;
    for (size_t j = 0; j < plan.size(); ++j) {
      const bool kept = !plan[j].reason.empty();
      if ((j > i && !kept) || plan[i].identity == plan[j].identity ||
          !Extent(plan[i]).overlaps(Extent(plan[j])))
        continue;
      plan[i].reason =
          fmt::format("lies over the weight of '{}', which is {}", plan[j].name, kept ? "kept" : "pruned");
      break;
    }
  }
}

}  // namespace mcompress
