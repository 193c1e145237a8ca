#include "gguf_plan.h"

#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress::cli {

namespace {

// Norms, biases and learned positions are small and stay; the head, which may be the embedding, loses most,
// and gets more bits. Where rows are no whole blocks, the next type that they are blocks of.
GgufType type_for(const GgufPlace& place, GgufType wanted, bool tied, std::string& reason) {
  if (place.shape.size() < 2 || place.name == "position_embd.weight") return GgufType::kF32;
  const bool few = block_of(wanted).values > 1 && wanted != GgufType::kQ8_0;
  const bool head = place.name == "output.weight" || (tied && place.name == "token_embd.weight");
  GgufType type = wanted;
  if (few && head) {
    type = GgufType::kQ6_K;
    reason = "the output layer gets more bits";
  }
  const int64_t columns = place.shape[1];
  if (columns % block_of(type).values == 0) return type;
  reason = fmt::format("its {} columns are no whole blocks of {}", columns, block_of(type).values);
  return columns % block_of(GgufType::kQ8_0).values == 0 ? GgufType::kQ8_0 : GgufType::kF16;
}

// Keeps the codes of a packed layer where the type, or else Q8_0, has a place for them.
Planned plan_codes(const IntGroup& weight, const GgufPlace& place, GgufType wanted, bool round_scales) {
  for (const GgufType type : {wanted, GgufType::kQ8_0}) {
    if (!gguf_scales(weight, place, type, round_scales).defined()) continue;
    std::string reason = "its codes as they are";
    if (type != wanted) reason += fmt::format(", for which {} has no place", name_of(wanted));
    if (!gguf_scales(weight, place, type, false).defined()) reason += ", its scales rounded to float16";
    return {type, true, reason};
  }
  return {};
}

}  // namespace

std::vector<Planned> plan_types(const std::vector<GgufPlace>& places, const PackedLayers& packed,
                                GgufType wanted, bool tied, bool allow_requantize) {
  std::vector<Planned> plan;
  bool some_fit = false;
  for (const GgufPlace& place : places) {
    check_interrupt();
    Planned planned;
    planned.type = type_for(place, wanted, tied, planned.reason);
    if (packed.contains(place) && block_of(planned.type).values == 1) {
      if (planned.type != GgufType::kF32 && planned.reason.empty())
        planned.reason = fmt::format("its values, rounded to {}", name_of(planned.type));
    } else if (packed.contains(place)) {
      const Planned codes = plan_codes(packed.read(place), place, wanted, allow_requantize);
      if (codes.keeps_codes) planned = codes;
      some_fit = some_fit || (codes.keeps_codes && codes.type == wanted);
    }
    plan.push_back(std::move(planned));
  }
  for (size_t i = 0; i < places.size(); ++i) {
    Planned& planned = plan[i];
    const bool kept = planned.keeps_codes && (planned.type == wanted || some_fit);
    if (!packed.contains(places[i]) || kept || block_of(planned.type).values == 1) continue;
    if (!allow_requantize)
      throw error(Exit::kUsage,
                  "tensor '{}': {} has no place for its codes and their scales; use --type {}, or pass "
                  "--allow-requantize, which rounds its values again, or its scales to float16",
                  places[i].source, name_of(wanted), planned.keeps_codes ? "Q8_0" : "F16");
    planned = {};
    planned.type = type_for(places[i], wanted, tied, planned.reason);
    planned.reason += std::string(planned.reason.empty() ? "" : "; ") +
                      "rounded again, since the type has no place for its codes";
  }
  return plan;
}

}  // namespace mcompress::cli
