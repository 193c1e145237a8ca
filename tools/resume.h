#pragma once

#include <string>
#include <vector>

#include "command.h"
#include "mcompress/base/output.h"
#include "mcompress/methods/run_checkpoint.h"

namespace mcompress::cli {

// Of a file, a folder, or two files with a comma between; empty for no path.
std::string hash_of_data(const std::string& path);

// Where the state is kept while a run lasts, beside the output; its fingerprint is of `hashes`, those of the
// files that decide the result, and of the settings that do. Refuses (73) a state that is there, but for
// --resume and
// --force, and a path that is none to write to.
CheckpointOptions open_checkpoint(const std::string& output, OutputKind kind, bool resume,
                                  const std::vector<std::string>& hashes, const RunOptions& run,
                                  const Report& report);

// Tells where --resume found nothing to go on from.
void warn_of_fresh_start(const CheckpointOptions& checkpoint, Report& report);

}  // namespace mcompress::cli
