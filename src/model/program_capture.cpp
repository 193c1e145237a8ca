#include <mutex>

#include <torch/library.h>

#include "mcompress/model/program.h"

namespace mcompress {

namespace {

// The sink of the run that is under way. A program may fork, so it is not one a thread.
struct Current {
  std::mutex mutex;
  const InputSink* sink = nullptr;
} current;

at::Tensor observe(int64_t layer, const at::Tensor& input) {
  const std::lock_guard lock(current.mutex);
  if (current.sink != nullptr) (*current.sink)(static_cast<size_t>(layer), input);
  return input;
}

}  // namespace

TORCH_LIBRARY(mcompress, library) {
  library.def("observe(int layer, Tensor(a) input) -> Tensor(a)");
  library.impl("observe", c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(observe));
}

std::function<void(const at::Tensor&)> capture_inputs(const torch::jit::Module& program,
                                                      const std::vector<Layer>& layers, InputSink sink) {
  return [forward = program_forward(observe_layers(program, layers)),
          sink = std::move(sink)](const at::Tensor& batch) {
    struct Guard {
      explicit Guard(const InputSink& sink) { set(&sink); }
      ~Guard() { set(nullptr); }
      static void set(const InputSink* sink) {
        const std::lock_guard lock(current.mutex);
        current.sink = sink;
      }
    } const guard(sink);
    forward(batch);
  };
}

}  // namespace mcompress
