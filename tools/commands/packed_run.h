#pragma once

#include <functional>
#include <string>

#include "compress_steps.h"
#include "group_options.h"
#include "mcompress/base/output.h"
#include "mcompress/model/packed_folder.h"
#include "models.h"

namespace mcompress::cli {

// Steps that every command shares that writes a folder of packed layers.

// Refuses (2) a format that the layers have no place in, and tells the report of what readers make of the
// folder, of its size and of the input.
void announce_folder(const CheckpointFiles& checkpoint, const std::string& model, const std::string& format,
                     const PackedFolder& folder, const BackgroundHash& hash, Report& report);

// Writes the folder, and reads its layers again; it is the caller's to commit. `give` as
// write_packed_folder() has it.
void write_checked_folder(const CheckpointFiles& checkpoint, const std::string& model,
                          const PackedFolder& folder, const std::function<void(const TakeLayer& take)>& give,
                          OutputFolder& output, Report& report);

// Tells the report of what was written.
void describe_folder(const std::string& output, const PackedFolder& folder, Report& report);

}  // namespace mcompress::cli
