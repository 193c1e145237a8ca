#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace mcompress {

// Something in a compressed checkpoint that its readers would stumble over, or take for something else.
struct Finding {
  std::string where;  // a layer, tensor, file or key of a configuration
  std::string what;
};

// A packed layer beside the weight that it was made of.
struct LayerMatch {
  std::string name;
  double sqnr_db = 0;  // of the best fit where scales were moved into or out of its rows and columns
};

struct Verification {
  std::vector<Finding> findings;
  std::vector<LayerMatch> layers;  // of --against
  std::vector<std::string> notes;  // what could not be looked at
  int64_t checked = 0;             // packed layers
};

// Reads a Hugging Face folder of packed layers, whichever tool wrote it, and looks for what is wrong in it:
// configuration against tensors, shapes and group counts, the convention of zero points, the order of groups,
// scales that are 0 or not finite, tensors that are missing or left over, the index against the shards.
// `against`: the folder that it was made of; layers that do not look like theirs are findings too.
Verification verify_folder(const std::string& folder, const std::optional<std::string>& against);

// The same of a GGUF file: its structure, numbers that are not finite, the lists of its tokenizer, and where
// the architecture is a known one, what its keys and tensors should be.
Verification verify_gguf(const std::string& path);

}  // namespace mcompress
