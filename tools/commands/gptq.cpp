#include <memory>

#include "language_run.h"
#include "mcompress/methods/decoder_gptq.h"
#include "mcompress/methods/program_gptq.h"
#include "models.h"
#include "program_run.h"

namespace mcompress::cli {

namespace {

constexpr const char* kGroup = "GPTQ";

// The settings of one `mcompress gptq`.
struct GptqCommand : CompressOptions, GroupOptions, CalibrationOptions {
  int64_t sweeps = 4;
  bool act_order = true, static_groups = true, true_sequential = true, resume = false;
  double damping = 0.01;
};

void check_options(const GptqCommand& options) {
  check_compress_options(options, "gptq");
  if (options.calib_data.empty() && !options.dry_run)
    throw error(Exit::kUsage, "gptq needs --calib-data, text or data like what the model is for");
  const bool in_order = !options.act_order || options.static_groups;
  const std::string& format = folder_format(options);
  const bool any_order = format == "gptq" || format == "dequantized" || format == kTorchScriptFormat;
  if (!in_order && !any_order)
    throw error(
        Exit::kUsage,
        "--format {} has groups of neighbours only; leave out --no-static-groups, or use --format gptq",
        format);
}

GptqOptions method_options(const GptqCommand& options) {
  GptqOptions method;
  method.act_order = options.act_order;
  method.static_groups = options.static_groups;
  method.damping = options.damping;
  method.sweeps = static_cast<int>(options.sweeps);
  return method;
}

void gptq_torchscript(const GptqCommand& options, const RunOptions& run, Report& report) {
  ProgramRun command{"gptq", options, options, options, options.resume, {}};
  command.round = [&](const torch::jit::Module& program, const std::vector<Layer>& layers,
                      const std::map<std::string, GroupGrid>& grids, const at::Tensor& batch) {
    return gptq_program(program, layers, {method_options(options), grids, options.true_sequential}, batch);
  };
  run_program(command, run, report);
}

// Of a Hugging Face folder.
void gptq_language(const GptqCommand& options, const RunOptions& run, Report& report) {
  LanguageRun command{"gptq", options, options, options, options.resume, {}, {}};
  command.round = [&](const Decoder& model, const at::Tensor& ids,
                      const std::map<std::string, GroupGrid>& grids, at::ScalarType states,
                      const CheckpointOptions& checkpoint) {
    return gptq_decoder(model, ids, {method_options(options), grids, options.true_sequential, states},
                        checkpoint);
  };
  command.describe = [&](PackedFolder& folder) {
    folder.act_order = options.act_order;
    folder.static_groups = options.static_groups;
    folder.true_sequential = options.true_sequential;
    folder.damping = options.damping;
  };
  run_language(command, run, report);
}

void gptq(const GptqCommand& options, const RunOptions& run, Report& report) {
  check_options(options);
  const ModelFormat format = detect_model(options.model);
  check_for_format(options, format);
  if (format == ModelFormat::kTorchScript) return gptq_torchscript(options, run, report);
  if (format == ModelFormat::kHuggingFace) return gptq_language(options, run, report);
  throw error(
      Exit::kUsage,
      "'{}' is {}, which gptq cannot run; pass the Hugging Face folder of a language model, or TorchScript",
      options.model, name_of(format));
}

void add_layer_options(CLI::App& app, GptqCommand& options) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(kGroup);
  };
  const auto add_switch = [&](const char* names, bool& value, const char* help) {
    app.add_flag(names, value, help)->group(kGroup)->default_str(value ? "true" : "false");
  };
  add_switch("--act-order,!--no-act-order", options.act_order, "Round the inputs of most weight first");
  add_switch("--static-groups,!--no-static-groups", options.static_groups,
             "Groups are neighbours whatever the order, so that readers need no g_idx");
  add_switch("--true-sequential,!--no-true-sequential", options.true_sequential,
             "Round each part of a block on what the rounded part before it gives");
  add("--damp-percent", options.damping,
      "Is added to the Hessian's diagonal, as a share of its mean; more where it is singular")
      ->check(number_from(0, 1));
  add("--sweeps", options.sweeps,
      "Passes over the rounded weight that set each scale, then each code, to what is best beside the others")
      ->check(CLI::Range(0, 100));
}

}  // namespace

Command gptq_command() {
  auto options = std::make_shared<GptqCommand>();
  options->text.length_option = "--eval-seqlen";
  const auto add_options = [options](CLI::App& app) {
    add_compress_options(app, *options, "What to write: a folder for a folder, TorchScript for TorchScript");
    add_group_options(app, *options, kGroup);
    add_embeddings_option(app, options->embedding_bits, kEmbeddingsHelp)->group(kGroup);
    add_layer_options(app, *options);
    add_calibration_options(app, *options, kGroup);
    app.add_flag("--resume", options->resume, "Go on from OUTPUT.checkpoint, where a stopped run left it")
        ->group(kGroup);
  };
  const auto run = [options](const RunOptions& r, Report& report) { gptq(*options, r, report); };
  return {"gptq", "Round weights to 2 to 8 bits so that layers' outputs change least (GPTQ)", add_options,
          run};
}

}  // namespace mcompress::cli
