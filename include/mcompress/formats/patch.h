#pragma once

#include <functional>
#include <vector>

#include "mcompress/base/output.h"

namespace mcompress {

// Bytes of a mapped file that become others. `produce` hands on as many as there are, in order and in
// pieces of any size.
struct Patch {
  Bytes range;
  std::function<void(const std::function<void(Bytes)>& write)> produce;
};

// Copies `source` into `file` with the patches, which must lie inside it and not overlap, in one pass from
// front to back. Where the source is a zip archive, the checksums of the patched members follow; a
// checksum that its writer left out (0) stays so.
void write_patched(const MappedFile& source, std::vector<Patch> patches, OutputFile& file);

}  // namespace mcompress
