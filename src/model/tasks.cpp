#include "mcompress/model/tasks.h"

#include <atomic>

#include <ATen/Parallel.h>

namespace mcompress {

void for_each_task(int64_t count, const std::function<void(int64_t task)>& work) {
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < count; task = next++) work(task);
  });
}

}  // namespace mcompress
