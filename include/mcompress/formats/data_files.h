#pragma once

#include <string>
#include <vector>

#include "mcompress/formats/array.h"

namespace mcompress {

// The plain formats of data sets. Each reader compares the sizes in the header with the bytes that
// are there before it does anything else, and throws Error(65). `path` is for messages.

// IDX (yann.lecun.com/exdb/mnist): 0, 0, type, rank, big-endian u32 dimensions. Types 0x08 u8 and
// 0x09 i8 are read; the wider ones are big-endian and refused.
bool looks_like_idx(Bytes bytes);
Array read_idx(Bytes bytes, const std::string& path);

// CIFAR-10 binary: rows of one label byte and 3 x 32 x 32 bytes (cs.toronto.edu/~kriz/cifar.html).
constexpr uint64_t kCifarRow = 3073;
bool looks_like_cifar10(Bytes bytes);  // a whole number of rows whose labels are below 10

// NumPy .npy, versions 1 to 3, C order, little-endian, numbers only (numpy.lib.format).
bool looks_like_npy(Bytes bytes);
Array read_npy(Bytes bytes, const std::string& path);

}  // namespace mcompress
