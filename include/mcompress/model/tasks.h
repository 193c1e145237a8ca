#pragma once

#include <cstdint>
#include <functional>

namespace mcompress {

// Calls `work` with each of [0, count) on LibTorch's threads, of which each takes the next when it is done:
// for tasks of which some take longer, or threads that do. What a task gives must not depend on the others.
void for_each_task(int64_t count, const std::function<void(int64_t task)>& work);

}  // namespace mcompress
