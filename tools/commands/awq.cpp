#include <memory>

#include "language_run.h"
#include "mcompress/methods/decoder_awq.h"
#include "mcompress/methods/program_awq.h"
#include "models.h"
#include "program_run.h"

namespace mcompress::cli {

namespace {

constexpr const char* kGroup = "AWQ";

// The settings of one `mcompress awq`.
struct AwqCommand : CompressOptions, GroupOptions, CalibrationOptions {
  int64_t points = 20;
  bool gptq = false, resume = false;
};

void check_options(const AwqCommand& options) {
  check_compress_options(options, "awq");
  if (options.calib_data.empty() && !options.dry_run)
    throw error(Exit::kUsage, "awq needs --calib-data, text or data like what the model is for");
}

void awq_torchscript(const AwqCommand& options, const RunOptions& run, Report& report) {
  if (options.gptq)
    throw error(Exit::kUsage, "--gptq is for language models, and '{}' is TorchScript; use 'mcompress gptq'",
                options.model);
  ProgramRun command{"awq", options, options, options, options.resume, {}};
  command.round = [&](const torch::jit::Module& program, const std::vector<Layer>& layers,
                      const std::map<std::string, GroupGrid>& grids, const at::Tensor& batch) {
    RoundedProgram result = awq_program(program, layers, {grids, options.points}, batch);
    if (result.folds.empty())
      report.warnings.emplace_back(
          "no norm and no linear layer gives its outputs to linear layers alone, so that no scales are "
          "moved, "
          "and only ranges of groups are searched");
    return result;
  };
  run_program(command, run, report);
}

void awq(const AwqCommand& options, const RunOptions& run, Report& report) {
  check_options(options);
  const ModelFormat format = detect_model(options.model);
  check_for_format(options, format);
  if (format == ModelFormat::kTorchScript) return awq_torchscript(options, run, report);
  if (format != ModelFormat::kHuggingFace)
    throw error(
        Exit::kUsage,
        "'{}' is {}, which awq cannot run; pass the Hugging Face folder of a language model, or TorchScript",
        options.model, name_of(format));
  LanguageRun command{"awq", options, options, options, options.resume, {}, {}};
  command.round = [&](const Decoder& model, const at::Tensor& ids,
                      const std::map<std::string, GroupGrid>& grids, at::ScalarType states,
                      const CheckpointOptions& checkpoint) {
    DecoderAwqPlan plan;
    plan.layers = grids;
    plan.points = options.points;
    plan.states = states;
    if (options.gptq) plan.gptq.emplace();
    return awq_decoder(model, ids, plan, checkpoint);
  };
  command.describe = [](PackedFolder&) {};
  run_language(command, run, report);
}

}  // namespace

Command awq_command() {
  auto options = std::make_shared<AwqCommand>();
  options->text.length_option = "--eval-seqlen";
  options->folder_format = "awq";
  const auto add_options = [options](CLI::App& app) {
    add_compress_options(app, *options, "What to write: a folder for a folder, TorchScript for TorchScript");
    add_group_options(app, *options, kGroup);
    add_embeddings_option(app, options->embedding_bits, kEmbeddingsHelp)->group(kGroup);
    app.add_option("--scale-grid", options->points, "Powers that are tried for the scales of channels")
        ->check(CLI::Range(2, 200))
        ->group(kGroup);
    app.add_flag("--gptq", options->gptq, "Round the scaled weights by GPTQ instead of to nearest")
        ->group(kGroup);
    add_calibration_options(app, *options, kGroup);
    app.add_flag("--resume", options->resume, "Go on from OUTPUT.checkpoint, where a stopped run left it")
        ->group(kGroup);
  };
  const auto run = [options](const RunOptions& r, Report& report) { awq(*options, r, report); };
  return {"awq", "Round weights on finer grids where their inputs are large (AWQ)", add_options, run};
}

}  // namespace mcompress::cli
