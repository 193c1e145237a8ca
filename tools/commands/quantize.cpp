#include "quantize.h"

#include <memory>

#include "mcompress/base/output.h"

namespace mcompress::cli {

namespace {

void check_options(const QuantizeCommand& options) {
  check_compress_options(options, "quantize");
  if (options.dtype != "int8" && options.per_tensor)
    throw error(Exit::kUsage, "--per-tensor goes with --dtype int8 only");
  if (options.dtype != "int8" && options.runtime == "fbgemm")
    throw error(Exit::kUsage, "--runtime fbgemm goes with --dtype int8 only");
}

void quantize(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  check_options(options);
  const ModelFormat format = detect_model(options.model);
  const OutputKind kind = format == ModelFormat::kHuggingFace ? OutputKind::kFolder : OutputKind::kFile;
  if (!options.output.empty()) check_output(options.output, kind, run.force, run.inputs);
  if (format == ModelFormat::kTorchScript) {
    quantize_program(options, run, report);
  } else {
    quantize_checkpoint(options, format, run, report);
  }
}

}  // namespace

std::string obstacle_of(LayerKind kind, const QuantizeCommand& options) {
  if (kind == LayerKind::kConv1d || kind == LayerKind::kConv2d) return "dynamic mode treats no convolutions";
  const bool left = kind == LayerKind::kEmbedding && !options.embeddings;
  return left ? "embeddings are left alone without --embeddings" : "";
}

Command quantize_command() {
  auto options = std::make_shared<QuantizeCommand>();
  const auto add_options = [options](CLI::App& app) {
    add_compress_options(app, *options,
                         "What to write: TorchScript for TorchScript, a folder for a folder, safetensors for "
                         "the rest");
    app.add_option("--mode", options->mode, "dynamic: weights are narrowed, activations when they come")
        ->check(CLI::IsMember({"dynamic"}));
    app.add_option("--dtype", options->dtype, "Type of the stored weights")
        ->check(CLI::IsMember({"int8", "float16", "bfloat16"}));
    app.add_flag("--per-tensor", options->per_tensor, "One scale a weight instead of one an output channel");
    app.add_option("--runtime", options->runtime,
                   "How int8 layers compute. int8: oneDNN kernels; portable: plain operators, any CPU; "
                   "fbgemm: torch.ao's deprecated operator, fastest on small batches")
        ->check(CLI::IsMember({"int8", "portable", "fbgemm"}));
    app.add_flag("--embeddings", options->embeddings, "Compress embeddings too");
  };
  const auto run = [options](const RunOptions& r, Report& report) { quantize(*options, r, report); };
  return {"quantize", "Store weights in fewer bits", add_options, run};
}

}  // namespace mcompress::cli
