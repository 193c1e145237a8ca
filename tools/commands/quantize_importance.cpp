#include <algorithm>

#include "language_run.h"
#include "mcompress/methods/decoder_nearest.h"
#include "quantize.h"

namespace mcompress::cli {

void quantize_by_importance(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  CalibrationOptions calibration;
  calibration.calib_data = options.calib_data;
  calibration.calib_layout = options.text.layout;
  calibration.nsamples = options.nsamples;
  if (!options.groups.search)
    throw error(Exit::kUsage, "--no-mse takes the range of each group, which --calib-data does not change");
  const auto config = language_config(options.model);
  if (!config)
    throw error(
        Exit::kUsage,
        "'{}' is no language model that can be run on --calib-data; leave that out, or see 'mcompress "
        "inspect'",
        options.model);
  calibration.seqlen = options.text.seqlen.value_or(std::min(calibration.seqlen, config->positions));
  LanguageRun command{"quantize", options, options.groups, calibration, options.training.resume, {}, {}};
  command.round = [](const Decoder& model, const at::Tensor& ids,
                     const std::map<std::string, GroupGrid>& grids, at::ScalarType states,
                     const CheckpointOptions& checkpoint) {
    return nearest_decoder(model, ids, {grids, states}, checkpoint);
  };
  command.describe = [](PackedFolder&) {};
  run_language(command, run, report);
}

}  // namespace mcompress::cli
