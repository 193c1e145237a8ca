#include "program_source.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace mcompress {

namespace {

constexpr int64_t kCodesAWord = 8;

std::string list(const std::vector<int64_t>& numbers) {
  return fmt::format("[{}]", fmt::join(numbers, ", "));
}

}  // namespace

at::Tensor pack_codes(const at::Tensor& codes, int bits) {
  const int64_t words = (codes.numel() + kCodesAWord - 1) / kCodesAWord;
  at::Tensor raised = at::zeros({words * kCodesAWord}, at::kLong);
  raised.slice(0, 0, codes.numel()).copy_(codes.flatten().to(at::kLong) + (int64_t{1} << (bits - 1)));
  const at::Tensor shifts = at::arange(kCodesAWord, at::kLong) * bits;
  const at::Tensor word = at::bitwise_left_shift(raised.view({words, kCodesAWord}), shifts).sum(1, true);
  const at::Tensor bytes = at::arange(bits, at::kLong) * 8;
  return at::bitwise_and(at::bitwise_right_shift(word, bytes), 255).to(at::kByte).flatten();
}

std::string unpack_source(int bits) {
  return fmt::format(R"(
    words = torch.bitwise_left_shift(self.codes.view([-1, {0}]).to(dtype=4), torch.arange({0}) * 8).sum([1], True)
    raised = torch.bitwise_and(torch.bitwise_right_shift(words, torch.arange(8) * {0}), {1}).flatten()
    size = 1
    for n in self.shape:
        size *= n
    self.weight = (raised[:size] - {2}).to(dtype=1).view(self.shape)
)",
                     bits, (1 << bits) - 1, 1 << (bits - 1));
}

std::string slide(const Convolution& conv) {
  return fmt::format("{}, {}, {}, {}", list(conv.stride), list(conv.padding), list(conv.dilation),
                     conv.groups);
}

std::string pad_source(const Layer& layer) {
  if (!layer.convolution || layer.convolution->pad.empty()) return "";
  return fmt::format("    x = torch.pad(x, {}, \"{}\")\n", list(layer.convolution->pad),
                     layer.convolution->pad_mode);
}

const char* conv_name(const Layer& layer) { return layer.kind == LayerKind::kConv1d ? "conv1d" : "conv2d"; }

std::string float_call(const Layer& layer, const std::string& weight) {
  if (layer.kind == LayerKind::kLinear) return fmt::format("torch.linear(x, {}, self.bias)", weight);
  return fmt::format("torch.{}(x, {}, self.bias, {})", conv_name(layer), weight, slide(*layer.convolution));
}

}  // namespace mcompress
