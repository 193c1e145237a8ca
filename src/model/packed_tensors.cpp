#include <array>
#include <initializer_list>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "mcompress/base/error.h"
#include "mcompress/model/packed_layer.h"
#include "packed_words.h"

namespace mcompress {

namespace {

constexpr int64_t kGrain = 16;

uint32_t* words_in(const at::Tensor& tensor) {
  return reinterpret_cast<uint32_t*>(tensor.data_ptr<int32_t>());
}

// codes [streams, count] to words [count * bits / 32, streams]
at::Tensor packed(const at::Tensor& codes, int bits) {
  const int64_t streams = codes.size(0), count = codes.size(1);
  at::Tensor words = at::empty({words_for(count, bits), streams}, at::kInt);
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

// Where column i of AWQ's words comes from, eight by eight; and the opposite.
constexpr std::array<int64_t, 8> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};
at::Tensor awq_columns(int64_t count) {
  const auto width = static_cast<int64_t>(kAwqOrder.size());
  return (at::arange(count / width).unsqueeze(1) * width + at::tensor(kAwqOrder, at::kLong)).flatten();
}

// [streams, count] to words [streams, count / 8] and back.
at::Tensor packed_for_awq(const at::Tensor& codes) {
  return packed(codes.index_select(1, awq_columns(codes.size(1))), 4).t().contiguous();
}
at::Tensor unpacked_from_awq(const at::Tensor& words) {
  const int64_t count = words.size(1) * kWord / 4;
  return unpacked(words.t().contiguous(), count, 4).index_select(1, awq_columns(count).argsort());
}

bool is_whole(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kInt || tensor.scalar_type() == at::kLong;
}

// The tensors of one layer, whose mistakes are told with its name.
class Given {
 public:
  Given(const PackedTensors& tensors, const std::string& layer) : tensors_(tensors), layer_(layer) {}

  Error refuse(const std::string& what) const { return bad_data("layer '{}': {}", layer_, what); }

  const at::Tensor& operator[](const char* suffix) const {
    const auto found = tensors_.find(suffix);
    if (found == tensors_.end()) throw refuse(fmt::format("it lacks '{}{}'", layer_, suffix));
    return found->second;
  }
  bool has(const char* suffix) const { return tensors_.contains(suffix); }

  void require(std::initializer_list<const char*> suffixes) const {
    for (const char* suffix : suffixes) (*this)[suffix];
  }

  at::Tensor words(const char* suffix) const {
    const at::Tensor words = matrix(suffix);
    if (words.scalar_type() != at::kInt) throw refuse(fmt::format("{} is not of type I32", suffix + 1));
    return words;
  }

  at::Tensor bytes(const char* suffix) const {
    const at::Tensor bytes = matrix(suffix);
    if (bytes.scalar_type() != at::kChar) throw refuse(fmt::format("{} is not of type I8", suffix + 1));
    return bytes;
  }

  // In float16, as our files have them, where it holds them exactly.
  at::Tensor scales(const char* suffix) const {
    const at::Tensor given = matrix(suffix);
    if (!given.is_floating_point()) throw refuse(fmt::format("{} is of no floating type", suffix + 1));
    const at::Tensor wide = given.to(at::kFloat), scales = wide.to(at::kHalf);
    if (!wide.isfinite().all().item<bool>())
      throw refuse(fmt::format("{} has NaN or infinite values", suffix + 1));
    if (wide.eq(0).logical_and(given.ne(0)).any().item<bool>())
      throw refuse(fmt::format("{} has values that float32 has no number for", suffix + 1));
    return scales.to(at::kFloat).equal(wide) ? scales : wide;
  }

  void expect(const char* suffix, const at::Tensor& tensor, int64_t rows, int64_t columns) const {
    if (tensor.size(0) != rows || tensor.size(1) != columns)
      throw refuse(fmt::format("{} is [{}, {}], and the tensors beside it ask for [{}, {}]", suffix + 1,
                               tensor.size(0), tensor.size(1), rows, columns));
  }

  std::pair<int64_t, int64_t> shape(const char* suffix) const {
    const at::Tensor& given = (*this)[suffix];
    if (given.numel() != 2 || !is_whole(given))
      throw refuse(fmt::format("{} is not two whole numbers", suffix + 1));
    const at::Tensor shape = given.flatten().to(at::kLong);
    return {shape[0].item<int64_t>(), shape[1].item<int64_t>()};
  }

  // g_idx
  at::Tensor groups(const char* suffix, int64_t channels, int64_t count) const {
    const at::Tensor& groups = (*this)[suffix];
    if (channels == 0 || groups.dim() != 1 || groups.size(0) != channels || !is_whole(groups))
      throw refuse(fmt::format("{} has not one group for each of {} channels", suffix + 1, channels));
    if (groups.min().item<int64_t>() < 0 || groups.max().item<int64_t>() >= count)
      throw refuse(fmt::format("{} has a group outside the {} of scales", suffix + 1, count));
    return groups.to(at::kLong);
  }

  // `count` groups of neighbours of one size.
  at::Tensor even_groups(int64_t channels, int64_t count) const {
    if (channels % count != 0)
      throw refuse(fmt::format("{} groups do not divide its {} channels", count, channels));
    return at::arange(channels).div(channels / count, "floor");
  }

 private:
  // A vector is one of one column.
  at::Tensor matrix(const char* suffix) const {
    at::Tensor tensor = (*this)[suffix];
    if (tensor.dim() < 2) tensor = tensor.reshape({-1, 1});
    if (tensor.dim() != 2 || tensor.numel() == 0)
      throw refuse(fmt::format("{} is no matrix, or empty", suffix + 1));
    return tensor;
  }

  const PackedTensors& tensors_;
  const std::string& layer_;
};

IntGroup unpack_gptq(const Given& given, bool less_one) {
  const at::Tensor words = given.words(".qweight"), zero_words = given.words(".qzeros"),
                   scales = given.scales(".scales");
  const int64_t outputs = words.size(1), count = scales.size(0), inputs = given[".g_idx"].numel();
  const at::Tensor groups = given.groups(".g_idx", inputs, count);
  const auto bits = static_cast<int>(words.size(0) * kWord / inputs);
  if (inputs * bits != words.size(0) * kWord || (bits != 2 && bits != 3 && bits != 4 && bits != 8))
    throw given.refuse(
        fmt::format("g_idx tells of {} channels, which do not fill the {} words of qweight "
                    "with 2, 3, 4 or 8 bits each",
                    inputs, words.size(0)));
  given.expect(".scales", scales, count, outputs);
  given.expect(".qzeros", zero_words, count, words_for(outputs, bits));
  at::Tensor zero = unpacked(zero_words.t(), outputs, bits).t();
  if (less_one) zero = zero.add(1).bitwise_and((1 << bits) - 1);
  return {bits, unpacked(words, inputs, bits), scales.t().contiguous(), zero.contiguous(), groups};
}

IntGroup unpack_awq(const Given& given) {
  const at::Tensor words = given.words(".qweight"), zero_words = given.words(".qzeros"),
                   scales = given.scales(".scales");
  const int64_t inputs = words.size(0), outputs = words.size(1) * 8, count = scales.size(0);
  given.expect(".scales", scales, count, outputs);
  given.expect(".qzeros", zero_words, count, words.size(1));
  return {4, unpacked_from_awq(words).t().contiguous(), scales.t().contiguous(),
          unpacked_from_awq(zero_words).t().contiguous(), given.even_groups(inputs, count)};
}

IntGroup unpack_compressed_tensors(const Given& given) {
  const at::Tensor words = given.words(".weight_packed"), scales = given.scales(".weight_scale");
  const auto [outputs, inputs] = given.shape(".weight_shape");
  const int64_t count = scales.size(1);
  if (outputs != words.size(0) || inputs < 1 || inputs > words.size(1) * kWord)
    throw given.refuse(fmt::format("weight_shape is [{}, {}], and weight_packed [{}, {}]", outputs, inputs,
                                   words.size(0), words.size(1)));
  const int bits = packed_width(words.size(1), inputs);
  if (bits == 0)
    throw given.refuse(fmt::format("{} words of weight_packed for {} channels are not 2 to 8 bits each",
                                   words.size(1), inputs));
  given.expect(".weight_scale", scales, outputs, count);
  at::Tensor zero;
  if (given.has(".weight_zero_point")) {
    const at::Tensor zero_words = given.words(".weight_zero_point");
    given.expect(".weight_zero_point", zero_words, words_for(outputs, bits), count);
    zero = unpacked(zero_words, outputs, bits).t().contiguous();
  } else {
    zero = at::full({outputs, count}, 1 << (bits - 1), at::kByte);
  }
  return {bits, unpacked(words.t(), inputs, bits), scales.contiguous(), zero,
          given.has(".weight_g_idx") ? given.groups(".weight_g_idx", inputs, count)
                                     : given.even_groups(inputs, count)};
}

// Codes and zero points of 4 bits where all are, of 8 otherwise; scales [N, groups], or one a row, or one.
IntGroup unpack_plain(const Given& given) {
  const at::Tensor codes = given.bytes(".weight");
  const int64_t outputs = codes.size(0), inputs = codes.size(1);
  at::Tensor scales = given.scales(".weight_scale");
  const bool one = scales.numel() == 1;  // for all
  if (one) scales = scales.expand({outputs, 1});
  const int64_t count = scales.size(1);
  given.expect(".weight_scale", scales, outputs, count);
  at::Tensor zero = at::zeros({outputs, count}, at::kChar);
  if (given.has(".weight_zero_point")) {
    zero = given.bytes(".weight_zero_point");
    if (one && zero.numel() == 1) zero = zero.expand({outputs, 1});
    given.expect(".weight_zero_point", zero, outputs, count);
  }
  const auto within = [](const at::Tensor& values) {
    return values.min().item<int>() >= -8 && values.max().item<int>() < 8;
  };
  const int bits = within(codes) && within(zero) ? 4 : 8;
  const auto unsigned_of = [&](const at::Tensor& values) {
    return values.to(at::kShort).add(1 << (bits - 1)).to(at::kByte);
  };
  return {bits, unsigned_of(codes), scales.contiguous(), unsigned_of(zero), given.even_groups(inputs, count)};
}

}  // namespace

PackedTensors pack_layer(PackedForm form, bool symmetric, const IntGroup& weight) {
  const at::Tensor codes = weight.codes.contiguous(), scales = weight.scale.t().contiguous();
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2: {
      const at::Tensor zero = form == PackedForm::kGptq ? weight.zero - 1 : weight.zero;
      return {{".qweight", packed(codes, weight.bits)},
              {".qzeros", packed(zero.t(), weight.bits).t().contiguous()},
              {".scales", scales},
              {".g_idx", weight.groups.to(at::kInt)}};
    }
    case PackedForm::kAwq:
      return {{".qweight", packed_for_awq(codes.t())},
              {".qzeros", packed_for_awq(weight.zero.t())},
              {".scales", scales}};
    case PackedForm::kPlainCodes: {
      const auto signed_of = [&](const at::Tensor& values) {
        return values.to(at::kShort).sub(1 << (weight.bits - 1)).to(at::kChar);
      };
      PackedTensors tensors = {{".weight", signed_of(codes)}, {".weight_scale", weight.scale.contiguous()}};
      if (!symmetric) tensors[".weight_zero_point"] = signed_of(weight.zero.contiguous());
      return tensors;
    }
    case PackedForm::kCompressedTensors: break;
  }
  PackedTensors tensors = {{".weight_packed", packed(codes, weight.bits).t().contiguous()},
                           {".weight_scale", weight.scale.contiguous()},
                           {".weight_shape", at::tensor({codes.size(0), codes.size(1)}, at::kLong)}};
  if (!symmetric) tensors[".weight_zero_point"] = packed(weight.zero.t(), weight.bits);
  return tensors;
}

std::pair<int64_t, int64_t> packed_sizes(PackedForm form, const PackedTensors& tensors,
                                         const std::string& layer) {
  const Given given(tensors, layer);
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2:
      given.require({".qzeros", ".scales"});
      return {given.words(".qweight").size(1), given[".g_idx"].numel()};
    case PackedForm::kAwq: {
      given.require({".qzeros", ".scales"});
      const at::Tensor words = given.words(".qweight");
      return {words.size(1) * kWord / 4, words.size(0)};
    }
    case PackedForm::kPlainCodes: {
      given.require({".weight_scale"});
      const at::Tensor codes = given.bytes(".weight");
      return {codes.size(0), codes.size(1)};
    }
    case PackedForm::kCompressedTensors: break;
  }
  given.require({".weight_scale"});
  return given.shape(".weight_shape");
}

IntGroup unpack_layer(PackedForm form, const PackedTensors& tensors, const std::string& layer) {
  const Given given(tensors, layer);
  switch (form) {
    case PackedForm::kGptq:
    case PackedForm::kGptqV2: return unpack_gptq(given, form == PackedForm::kGptq);
    case PackedForm::kAwq: return unpack_awq(given);
    case PackedForm::kPlainCodes: return unpack_plain(given);
    case PackedForm::kCompressedTensors: break;
  }
  return unpack_compressed_tensors(given);
}

}  // namespace mcompress
