#include "epoch_text.h"

#include <cstdlib>
#include <sstream>

#include <fmt/format.h>

namespace mcompress {

std::string to_text(const std::vector<EpochRecord>& epochs) {
  std::string text;
  for (const EpochRecord& epoch : epochs) {
    text += fmt::format("{} {:.17g} {:.17g} {} {:.17g}\n", epoch.epoch, epoch.loss, epoch.rate,
                        epoch.score ? fmt::format("{:.17g}", *epoch.score) : "-", epoch.seconds);
  }
  return text;
}

std::vector<EpochRecord> epochs_of(const std::string& text) {
  std::vector<EpochRecord> epochs;
  std::istringstream lines(text);
  EpochRecord epoch;
  std::string score;
  std::string loss;
  while (lines >> epoch.epoch >> loss >> epoch.rate >> score >> epoch.seconds) {
    epoch.loss = std::strtod(loss.c_str(), nullptr);  // "nan" too
    epoch.score.reset();
    if (score != "-") epoch.score = std::strtod(score.c_str(), nullptr);
    epochs.push_back(epoch);
  }
  return epochs;
}

}  // namespace mcompress
