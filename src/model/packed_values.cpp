#include "packed_values.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "mcompress/model/checkpoint.h"

namespace mcompress {

namespace {

// Of codes and zero points less the middle.
std::pair<int, int> range_of(const IntGroup& weight) {
  const int middle = 1 << (weight.bits - 1);
  return {std::min(weight.codes.min().item<int>(), weight.zero.min().item<int>()) - middle,
          std::max(weight.codes.max().item<int>(), weight.zero.max().item<int>()) - middle};
}

class Checker {
 public:
  Checker(PackedForm form, const std::string& layer, const IntGroup& weight, const LayerScheme& scheme)
      : form_(form), layer_(layer), weight_(weight), scheme_(scheme) {}

  std::vector<Finding> run() {
    const bool embedding = is_compressed_tensors(form_) && is_embedding(layer_ + ".weight");
    if (form_ == PackedForm::kPlainCodes || embedding) {
      check_range();
    } else if (scheme_.bits != 0 && scheme_.bits != weight_.bits) {
      find(fmt::format("its tensors are of {} bits, and quantization_config says {}", weight_.bits,
                       scheme_.bits));
    }
    const int64_t size = scheme_.group_size < 0 ? channels_ : std::min(scheme_.group_size, channels_);
    if (size > 0 && groups_ != (channels_ + size - 1) / size)
      find(fmt::format("it has {} groups, and a group_size of {} makes {} of its {} channels", groups_,
                       scheme_.group_size, (channels_ + size - 1) / size, channels_));
    const int64_t none = weight_.scale.eq(0).sum().item<int64_t>();
    if (none > 0) find(fmt::format("{} of its scales are 0", none));
    if (!is_compressed_tensors(form_)) check_scales();
    const double largest = weight_.scale.abs().max().item<double>();
    if (largest * ((1 << weight_.bits) - 1) > std::numeric_limits<float>::max())
      find(fmt::format("its scales up to {:.3g} give values beyond float32", largest));
    if (is_compressed_tensors(form_) && scheme_.symmetric &&
        !weight_.zero.eq(1 << (weight_.bits - 1)).all().item<bool>())
      find("its zero points are not the middle, and quantization_config says symmetric");
    if (form_ == PackedForm::kAwq && scheme_.symmetric && !weight_.zero.eq(8).all().item<bool>())
      find("its zero points are not the middle, and 'zero_point' says that there are none");
    if (is_gptq(form_) || weight_.groups.diff().lt(0).any().item<bool>())
      check_order(size > 0 ? size : (channels_ + groups_ - 1) / groups_);
    if (is_gptq(form_)) check_zero_points();
    return std::move(findings_);
  }

 private:
  void find(const std::string& what) { findings_.push_back({layer_, what}); }

  // Codes that are not packed do not tell their bits.
  void check_range() {
    if (scheme_.bits < 1 || scheme_.bits > 8) return;
    const int low = -(1 << (scheme_.bits - 1)), high = -low - 1;
    const auto [least, most] = range_of(weight_);
    if (least < low || most > high)
      find(fmt::format("has codes or zero points from {} to {}, and {} bits are from {} to {}", least, most,
                       scheme_.bits, low, high));
  }

  // Readers of these forms have them in float16.
  void check_scales() {
    const at::Tensor halves = weight_.scale.to(at::kHalf);
    const int64_t lost = halves.isfinite()
                             .logical_not()
                             .logical_or(halves.eq(0).logical_and(weight_.scale.ne(0)))
                             .sum()
                             .item<int64_t>();
    if (lost > 0)
      find(fmt::format("{} of its scales are infinite or 0 in float16, which readers take", lost));
  }

  void check_order(int64_t size) {
    const at::Tensor counts = at::bincount(weight_.groups, {}, groups_);
    if (!scheme_.act_order && !weight_.groups.equal(at::arange(channels_).div(size, "floor")))
      find(fmt::format("g_idx is not in the order of channels, and {} says that it is",
                       is_gptq(form_) ? "desc_act" : "actorder"));
    if (counts.max().item<int64_t>() > size)
      find(fmt::format("g_idx gives a group {} channels, and {} of {} make {}", counts.max().item<int64_t>(),
                       groups_, channels_, size));
  }

  void check_zero_points() {
    const bool less_one = form_ == PackedForm::kGptq;
    const int64_t middle = 1 << (weight_.bits - 1);
    if (scheme_.symmetric && !weight_.zero.eq(middle).all().item<bool>()) {
      const bool other = weight_.zero.eq(less_one ? middle + 1 : middle - 1).all().item<bool>();
      find(other ? fmt::format("its zero points are {} in place of {}: qzeros are those of {}, and "
                               "checkpoint_format says {}",
                               weight_.zero.max().item<int64_t>(), middle, less_one ? "gptq_v2" : "gptq",
                               less_one ? "gptq" : "gptq_v2")
                 : "its zero points are not the middle, and quantization_config says sym");
    }
    if (less_one && !scheme_.symmetric && weight_.zero.eq(0).any().item<bool>())
      find("has zero points of 0, for which checkpoint_format gptq has no number; readers disagree on them");
  }

  PackedForm form_;
  const std::string& layer_;
  const IntGroup& weight_;
  const LayerScheme& scheme_;
  int64_t channels_ = weight_.codes.size(1), groups_ = weight_.scale.size(1);
  std::vector<Finding> findings_;
};

}  // namespace

int code_width(const IntGroup& weight) {
  const auto [least, most] = range_of(weight);
  int bits = 2;
  while (least < -(1 << (bits - 1)) || most >= 1 << (bits - 1)) ++bits;
  return bits;
}

std::vector<Finding> check_values(PackedForm form, const std::string& layer, const IntGroup& weight,
                                  const LayerScheme& scheme) {
  return Checker(form, layer, weight, scheme).run();
}

}  // namespace mcompress
