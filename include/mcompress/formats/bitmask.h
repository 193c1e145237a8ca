#pragma once

#include <map>
#include <string>

#include "mcompress/base/output.h"
#include "mcompress/formats/checkpoint_files.h"

namespace mcompress {

// Sparse storage of a checkpoint's single file as safetensors, in the layout `sparse-bitmask` of
// compressed-tensors: beside NAME.shape (I64) stand NAME.bitmask (U8 [rows, ceil(columns / 8)], lowest bit
// first), NAME.compressed (the elements whose bit is set, row after row) and NAME.row_offsets (I64, where
// each row begins in them). A tensor of more than two dimensions is stored as the matrix [rows, the rest].
// An element is left out where its bits are those of +0. Arrays that would not shrink stay as they are.
//
// The metadata entry `mcompress.dense` (base64 of zstd) holds all that the dense file had around its arrays,
// and its SHA-256, so that expand_bitmask() gives that file back byte for byte in its own format.

// Why a file has no such form: more than 32 MiB of it are no arrays, or a name that is needed is taken. Empty
// where it has one.
std::string bitmask_obstacle(const CheckpointFiles& dense);

// Writes that form of a file without obstacle.
void write_bitmask(const CheckpointFiles& dense, OutputFile& file);

// True for the metadata of a file that write_bitmask() wrote.
bool is_bitmask(const std::map<std::string, std::string>& metadata);

// Writes the dense file. Throws Error(65) naming what is damaged: shapes, sizes, counts, offsets, the
// frame, or the hash of the whole. `path` is for messages.
void expand_bitmask(Bytes bytes, const std::string& path, OutputFile& file);

}  // namespace mcompress
