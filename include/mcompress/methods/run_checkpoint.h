#pragma once

#include <string>

namespace mcompress {

// Where the state of a long run is kept while it lasts. It is the caller's to remove once the result is safe.
struct CheckpointOptions {
  std::string path;
  bool resume = false;
  std::string fingerprint;  // of all that decides the result; another one is refused with Error(78)
};

}  // namespace mcompress
