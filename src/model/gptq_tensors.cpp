#include "mcompress/model/gptq_tensors.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/packed_codes.h"

namespace mcompress {

namespace {

constexpr int64_t kWord = 32, kGrain = 16;

uint32_t* words_in(const at::Tensor& tensor) {
  return reinterpret_cast<uint32_t*>(tensor.data_ptr<int32_t>());
}

// codes [streams, count] to words [count * bits / 32, streams]
at::Tensor packed(const at::Tensor& codes, int bits) {
  const int64_t streams = codes.size(0), count = codes.size(1);
  at::Tensor words =
      at::empty({static_cast<int64_t>(words_of(static_cast<size_t>(count), bits)), streams}, at::kInt);
  const CodeMatrix matrix{codes.const_data_ptr<uint8_t>(), static_cast<size_t>(streams),
                          static_cast<size_t>(count), static_cast<size_t>(codes.stride(0)),
                          static_cast<size_t>(codes.stride(1))};
  at::parallel_for(0, streams, kGrain, [&](int64_t begin, int64_t end) {
    pack_codes(matrix, bits, static_cast<size_t>(begin), static_cast<size_t>(end), words_in(words));
  });
  return words;
}

at::Tensor unpacked(const at::Tensor& given, int64_t count, int bits) {
  const at::Tensor words = given.contiguous();
  const int64_t streams = words.size(1);
  at::Tensor codes = at::empty({streams, count}, at::kByte);
  at::parallel_for(0, streams, kGrain, [&](int64_t begin, int64_t end) {
    unpack_codes(words_in(words), static_cast<size_t>(streams), static_cast<size_t>(count), bits,
                 static_cast<size_t>(begin), static_cast<size_t>(end), codes.data_ptr<uint8_t>());
  });
  return codes;
}

bool is_known_width(int64_t bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

}  // namespace

std::array<GptqShape, 4> gptq_shapes(int64_t outputs, int64_t inputs, int64_t groups, int bits) {
  return {{{DType::kI32, {inputs * bits / kWord, outputs}},
           {DType::kI32, {groups, outputs * bits / kWord}},
           {DType::kF16, {groups, outputs}},
           {DType::kI32, {inputs}}}};
}

std::string gptq_obstacle(int64_t outputs, int64_t inputs, int bits) {
  if (!is_known_width(bits)) return fmt::format("GPTQ's format has no weights of {} bits", bits);
  if (inputs % kWord != 0 || outputs % kWord != 0)
    return fmt::format("GPTQ's format holds multiples of 32 inputs and outputs, and it has {} and {}", inputs,
                       outputs);
  return "";
}

GptqTensors pack_gptq(const IntGroup& weight, GptqZeros zeros) {
  const at::Tensor stored = zeros == GptqZeros::kLessOne ? weight.zero - 1 : weight.zero;
  return {packed(weight.codes.contiguous(), weight.bits), packed(stored.t(), weight.bits).t().contiguous(),
          weight.scale.t().contiguous(), weight.groups.to(at::kInt)};
}

IntGroup unpack_gptq(const GptqTensors& tensors, GptqZeros zeros, const std::string& layer) {
  const auto [words, zero_words, given, groups] = tensors;
  const at::Tensor scales = given.to(at::kHalf);  // as readers take them
  const auto refuse = [&](const std::string& what) { return bad_data("layer '{}': {}", layer, what); };
  if (words.dim() != 2 || zero_words.dim() != 2 || scales.dim() != 2 || groups.dim() != 1)
    throw refuse("qweight, qzeros and scales must be matrices, and g_idx a list");
  const int64_t inputs = groups.size(0), outputs = words.size(1), count = scales.size(0);
  if (inputs == 0 || outputs == 0 || count == 0) throw refuse("its weight is empty");
  if (words.size(0) * kWord % inputs != 0 || !is_known_width(words.size(0) * kWord / inputs))
    throw refuse(fmt::format("{} words of qweight for {} channels of g_idx are not 2, 3, 4 or 8 bits each",
                             words.size(0), inputs));
  const auto bits = static_cast<int>(words.size(0) * kWord / inputs);
  const bool fits = scales.size(1) == outputs && zero_words.size(0) == count &&
                    zero_words.size(1) * kWord == outputs * bits;
  if (!fits)
    throw refuse(fmt::format("qzeros [{}, {}] and scales [{}, {}] do not fit {} outputs of {} bits",
                             zero_words.size(0), zero_words.size(1), count, scales.size(1), outputs, bits));
  if (groups.min().item<int64_t>() < 0 || groups.max().item<int64_t>() >= count)
    throw refuse(fmt::format("g_idx has a group outside the {} of scales", count));
  if (!scales.isfinite().all().item<bool>()) throw refuse("scales has NaN or infinite values");
  at::Tensor zero = unpacked(zero_words.t().contiguous(), outputs, bits).t();
  if (zeros == GptqZeros::kLessOne) zero = zero.add(1).bitwise_and((1 << bits) - 1);
  return {bits, unpacked(words, inputs, bits), scales.t().contiguous(), zero.contiguous(),
          groups.to(at::kLong)};
}

}  // namespace mcompress
