#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/data/tokenizer.h"

namespace mcompress {

struct TextOptions {
  // kFile: the text as it is. kRows: each line as a row of the WikiText data sets, which is empty for a blank
  // line and ends with its line end otherwise, the rows joined by two line ends, as the GPTQ papers' code
  // feeds them.
  enum class Layout { kFile, kRows } layout = Layout::kFile;
  std::string field = "text";  // of the objects of a .jsonl file
};

// A text file, .gz too, or the texts of a .jsonl file (one JSON object a line), joined by two line ends.
// Throws Error: 66 missing, 65 empty or malformed, naming the line.
std::string read_text(const std::string& path, const TextOptions& options);

// Whether a file holds token ids, told from its name: .npy, .safetensors or .bin.
bool is_token_file(const std::string& path);

// Reads token ids: one array of integers, whose rows come after each other, or the bare little-endian numbers
// of a .bin, of 2 bytes where the vocabulary has at most 65,536 tokens and not every other one is 0, else
// of 4. Throws Error: 66 missing, 65 for malformed files and ids outside the vocabulary.
std::vector<int32_t> read_token_ids(const std::string& path, int64_t vocabulary);

// Windows of token ids, of equal length.
struct TokenWindows {
  at::Tensor ids;         // int64 [windows, length]
  int64_t predicted = 0;  // the last tokens of each but the first window that count; of the first all do
  int64_t first = 0;      // of the first window: length - 1

  int64_t count(int64_t window) const { return window == 0 ? first : predicted; }
};

// Cuts ids into windows of `length`, a new one each `stride` tokens; `stride` 0 or `length`: windows that do
// not overlap, of which all tokens but the first are predicted. With a smaller stride each token is predicted
// once, after at least `length - stride` others. What does not fill a window is left out. `limit` 0: all
// windows. Throws Error(65) where there is no whole window, Error(2) for a stride beyond the length.
TokenWindows cut_windows(const std::vector<int32_t>& ids, int64_t length, int64_t stride, int64_t limit);

}  // namespace mcompress
