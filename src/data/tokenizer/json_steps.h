#pragma once

#include <vector>

#include "json_fields.h"
#include "normalizer.h"
#include "split_step.h"

namespace mcompress {

// Read the steps of a tokenizer.json; null for none. Throw Error(65) naming a step that is not known.
std::vector<Normalizer> read_normalizers(const JsonFields& fields, const nlohmann::json& step);

struct PreTokenizer {
  std::vector<SplitStep> splits;
  bool is_byte_level = false;  // the model works on bytes
};
PreTokenizer read_pre_tokenizer(const JsonFields& fields, const nlohmann::json& step);

}  // namespace mcompress
