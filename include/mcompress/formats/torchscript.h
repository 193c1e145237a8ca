#pragma once

#include <string>
#include <vector>

#include "mcompress/formats/zip.h"

namespace mcompress {

// True where the archive holds TorchScript: it has code/ and constants.pkl beside data.pkl.
bool is_torchscript(const std::vector<ZipEntry>& entries);

// Looks through a TorchScript archive before LibTorch parses it, since loading runs its code and
// LibTorch's parsers crash on hostile input. Checks the CRC of every member, both pickles (globals,
// storages inside their members), and the code: nesting and length of its expressions, and that no
// operator reaches files. Throws Error(65); `trust_code` lets file operators pass.
void scan_torchscript(const std::vector<ZipEntry>& entries, const std::string& path, bool trust_code);

}  // namespace mcompress
