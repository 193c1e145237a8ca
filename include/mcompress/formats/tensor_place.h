#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mcompress/formats/array.h"
#include "mcompress/formats/pickle.h"

namespace mcompress {

// The bytes of one storage in a torch archive, and how a tensor lies in it.
struct TensorPlace {
  DType dtype;
  std::vector<int64_t> shape, strides;
  std::string storage_key;
  uint64_t offset;            // in elements
  uint64_t storage_elements;  // announced by the pickle
};

// The tensor that a call of torch._utils._rebuild_tensor_v2 (or of _rebuild_parameter around one)
// describes; its shape and strides stay inside its storage. Throws Error(65). False where `value`
// is no tensor.
bool read_tensor_place(const PickleValue& value, TensorPlace& place, const std::string& what);

// True for the globals that a state dict may name.
bool is_state_dict_global(std::string_view global);

// The element type of a storage that a pickle names, plain bytes for one without a type; nothing
// where the global is no storage.
std::optional<DType> dtype_of_storage(std::string_view global);

// True for a call of that global.
bool is_call_of(const PickleValue& value, std::string_view global);

}  // namespace mcompress
