#pragma once

#include <string>
#include <vector>

#include "mcompress/methods/trainer.h"

namespace mcompress {

// The epochs so far as a text of the state, a line each.
std::string to_text(const std::vector<EpochRecord>& epochs);
std::vector<EpochRecord> epochs_of(const std::string& text);

}  // namespace mcompress
