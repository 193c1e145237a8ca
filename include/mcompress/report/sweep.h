#pragma once

#include <string>
#include <vector>

#include "mcompress/report/report.h"

namespace mcompress {

// A sweep as lines for people, empty where it has no rows.
std::string sweep_table(const std::vector<SweepRow>& rows);

// A sweep as one HTML page that needs no other file: a curve of accuracy (or, where none was measured, of
// stored bytes) over sparsity as SVG, one line for the whole model and one a layer, and the numbers.
std::string sweep_page(const std::vector<SweepRow>& rows, const std::string& model);

}  // namespace mcompress
