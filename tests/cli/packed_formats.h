#pragma once

#include <string>

#include "cli/group_folder.h"

namespace mcompress::testing {

// Commands on the model of GroupFolder.
class PackedFormats : public GroupFolder {
 protected:
  std::string weight_only(const std::string& options, const std::string& output = "out",
                          const std::string& model = "model") const {
    return "quantize " + (folder_ / model) + " -o " + (folder_ / output) + " --mode weight-only --force " +
           options;
  }
  std::string convert(const std::string& from, const std::string& to, const std::string& options) const {
    return "convert " + (folder_ / from) + " -o " + (folder_ / to) + " --force " + options;
  }
  std::string awq(const std::string& options, const std::string& output = "out") const {
    return "awq " + (folder_ / "model") + " -o " + (folder_ / output) +
           " --force --group-size 32 --seqlen 64 --nsamples 20 --calib-data " + (folder_ / "text.txt") + " " +
           options;
  }
};

}  // namespace mcompress::testing
