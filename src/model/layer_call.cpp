#include "layer_call.h"

#include <mutex>

#include <torch/library.h>

#include "mcompress/base/error.h"

namespace mcompress {

namespace {

// The function of the run that is under way. A program may fork, so it is not one a thread.
struct Current {
  std::recursive_mutex mutex;
  const LayerFunction* function = nullptr;

  void set(const LayerFunction* next) {
    const std::lock_guard lock(mutex);
    function = next;
  }
} current;

at::Tensor call(int64_t layer, const at::Tensor& input) {
  const std::lock_guard lock(current.mutex);
  if (current.function == nullptr)
    throw error(Exit::kInternal, "internal error: a layer runs outside its run");
  return (*current.function)(static_cast<size_t>(layer), input);
}

}  // namespace

TORCH_LIBRARY(mcompress, library) {
  library.def("call(int layer, Tensor(a) input) -> Tensor(a)");  // which may be the input itself
  library.impl("call", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(call));
}

LayerCalls::LayerCalls(const LayerFunction& function) { current.set(&function); }
LayerCalls::~LayerCalls() { current.set(nullptr); }

}  // namespace mcompress
