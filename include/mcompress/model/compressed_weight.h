#pragma once

#include <cstdint>
#include <variant>

#include <ATen/core/Tensor.h>

namespace mcompress {

// Weights as integers of 2 to 8 bits, one scale a row: weight ~ codes * scale.
struct IntChannel {
  at::Tensor codes;  // int8, the weight's shape; from -2^(bits - 1), or -127, to 2^(bits - 1) - 1
  at::Tensor scale;  // float32 [rows]
  int bits = 8;
};

// A weight [rows, channels] as integers of 2 to 8 bits, input channels in groups, each with a scale and a
// zero point for every row: weight ~ scale * (code - zero point).
struct IntGroup {
  int bits = 4;
  at::Tensor codes;   // uint8 [rows, channels], 0 to 2^bits - 1
  at::Tensor scale;   // float16 [rows, groups]; float32 where a file has numbers that float16 has not
  at::Tensor zero;    // uint8 [rows, groups]
  at::Tensor groups;  // int64 [channels], the group of each
};

// Weights in a narrower float type.
struct Dense {
  at::Tensor values;  // float16 or bfloat16, the weight's shape
};

// The grid that a layer's input is rounded to: x ~ scale * (code - zero_point), codes from 0 to 2^bits - 1.
struct InputGrid {
  double scale = 1;
  int64_t zero_point = 0;
  int bits = 8;
  int64_t top() const { return (int64_t{1} << bits) - 1; }  // the highest code
};

// What a method makes of a layer's weight: a plain value that knows no file and no kernel.
using CompressedWeight = std::variant<IntChannel, Dense, IntGroup>;

// Rows [begin, end) of the weight, float32 [end - begin, columns].
at::Tensor dequantize_rows(const CompressedWeight& weight, int64_t begin, int64_t end);
uint64_t stored_bytes(const CompressedWeight& weight);  // codes, scales and zero points
// Its codes or narrow values, which are zero where the weight is but for groups.
const at::Tensor& stored_values(const CompressedWeight& weight);

// How a replaced layer computes. kInt8: uint8 activations, one range a row, by oneDNN's int8
// kernels. kPortable: weights are dequantized when used, plain aten operators only. kFbgemm: the
// deprecated quantized::linear_dynamic of torch.ao, one range a batch.
enum class Runtime { kInt8, kPortable, kFbgemm };

// The runtime of one linear weight where `wanted` was asked for: kInt8 of a small weight is kPortable,
// which is faster there up to hundreds of rows, since narrowing the activations costs more than it saves.
Runtime runtime_of(const at::Tensor& weight, Runtime wanted);

}  // namespace mcompress
