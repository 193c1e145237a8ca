#pragma once

#include <string>
#include <vector>

#include "mcompress/formats/array.h"
#include "mcompress/formats/zip.h"

namespace mcompress {

struct StateDict {
  std::vector<Array> arrays;       // in the order of the file, nested dicts joined with '.'
  std::vector<std::string> notes;  // what was unwrapped or passed over
};

// The legacy layout of torch.save before 1.6: pickles, then raw storages, no zip.
bool looks_like_legacy_torch_save(Bytes bytes);

// Reads what torch.save wrote of a state dict: plain dict, OrderedDict, nn.Parameter values, a
// checkpoint that holds one under 'state_dict', 'model', 'model_state_dict' or the like, a prefix
// 'module.' (taken off). Nothing is executed. Throws Error(65): a refused global is named, a whole
// pickled nn.Module is refused with the way out.
StateDict read_state_dict_zip(const std::vector<ZipEntry>& entries, const std::string& path);
StateDict read_legacy_state_dict(Bytes bytes, const std::string& path);

}  // namespace mcompress
