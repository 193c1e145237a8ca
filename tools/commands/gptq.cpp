#include "gptq.h"

#include <memory>

#include "mcompress/base/output.h"
#include "models.h"

namespace mcompress::cli {

namespace {

constexpr const char* kGroup = "GPTQ";

void check_options(const GptqCommand& options) {
  check_compress_options(options, "gptq");
  if (options.calib_data.empty() && !options.dry_run)
    throw error(Exit::kUsage, "gptq needs --calib-data, text or data like what the model is for");
}

void gptq(const GptqCommand& options, const RunOptions& run, Report& report) {
  check_options(options);
  const ModelFormat format = detect_model(options.model);
  check_for_format(options, format);
  if (format == ModelFormat::kTorchScript) return gptq_program(options, run, report);
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
  add("--bits", options.bits, "Bits of a weight")->check(CLI::IsMember({2, 3, 4, 8}));
  add("--group-size", options.group_size, "Input features that share a scale; -1: all of a layer")
      ->check([](const std::string& text) {
        int64_t size = 0;
        const bool fine = CLI::detail::lexical_cast(text, size) && (size == -1 || size > 0);
        return fine ? std::string() : fmt::format("'{}' is neither -1 nor at least 1", text);
      });
  add("--group-size-fallback", options.group_size_fallback,
      "Where the group size does not divide the inputs of a layer. error: stop; adjust: take the half, or "
      "the half "
      "of that; tail: the last group is smaller, which vLLM does not read; ignore: leave the layer alone")
      ->check(CLI::IsMember({"error", "adjust", "tail", "ignore"}));
  add_switch("--sym,!--asym", options.symmetric,
             "Symmetric grids, which every reader takes; --asym: with zero points, more exact (gptq_v2)");
  add_switch("--act-order,!--no-act-order", options.act_order, "Round the inputs of most weight first");
  add_switch("--static-groups,!--no-static-groups", options.static_groups,
             "Groups are neighbours whatever the order, so that readers need no g_idx");
  add_switch("--true-sequential,!--no-true-sequential", options.true_sequential,
             "Round each part of a block on what the rounded part before it gives");
  add_switch("--mse,!--no-mse", options.search, "Search the scale of each group that loses least");
  add("--damp-percent", options.damping,
      "Is added to the Hessian's diagonal, as a share of its mean; more where it is singular")
      ->check(number_from(0, 1));
  add("--sweeps", options.sweeps,
      "Passes over the rounded weight that set each scale, then each code, to what is best beside the others")
      ->check(CLI::Range(0, 100));
  add("--layer-config", options.layer_configs,
      "RE=bits:8,group:64 for layers whose name matches; of several the last; repeatable")
      ->allow_extra_args(false);
  app.add_flag("--lm-head", options.head, "Round the output layer too, where it is not the embedding")
      ->group(kGroup);
}

void add_run_of_text(CLI::App& app, GptqCommand& options) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(kGroup);
  };
  add("--calib-data,--dataset", options.calib_data,
      "What the model is run on: text (.txt, .gz, .jsonl) or token ids (.npy, .bin, .safetensors); for "
      "TorchScript "
      "data as for --eval-data, or one .npy; of a folder the train split");
  add_nsamples(app, options.nsamples);
  add("--seqlen", options.seqlen, "Tokens of a sample of text")->check(CLI::Range(2, 1 << 24));
  add("--calib-layout", options.calib_layout, "As --text-layout, for --calib-data")
      ->check(CLI::IsMember({"file", "rows"}));
  add("--calib-compute", options.calib_compute,
      "Type in which the model is run on it; auto: bf16, with products in fp32 where the processor "
      "multiplies "
      "no bf16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}));
  add("--format", options.format,
      "gptq: folder of packed weights as GPTQModel, transformers and vLLM read it; dequantized: a plain "
      "folder "
      "with the values that they stand for")
      ->check(CLI::IsMember({"gptq", "dequantized"}));
  add("--max-shard-size", options.shard_bytes, "Largest file of tensors, such as 5GB")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::Range(uint64_t{1} << 14, uint64_t{1} << 50));
  app.add_flag("--resume", options.resume, "Go on from OUTPUT.checkpoint, where a stopped run left it")
      ->group(kGroup);
}

}  // namespace

GptqOptions method_options(const GptqCommand& options) {
  GptqOptions method;
  method.act_order = options.act_order;
  method.static_groups = options.static_groups;
  method.damping = options.damping;
  method.sweeps = static_cast<int>(options.sweeps);
  return method;
}

GroupRounding rounding_of(const RoundedLayer& layer, int64_t group_size) {
  return {layer.weight.bits, group_size,          layer.loss,    layer.rounded_loss,
          layer.damping,     layer.dead_channels, layer.rounded, layer.seconds};
}

Command gptq_command() {
  auto options = std::make_shared<GptqCommand>();
  options->text.length_option = "--eval-seqlen";
  const auto add_options = [options](CLI::App& app) {
    add_compress_options(app, *options, "What to write: a folder for a folder, TorchScript for TorchScript");
    add_layer_options(app, *options);
    add_run_of_text(app, *options);
  };
  const auto run = [options](const RunOptions& r, Report& report) { gptq(*options, r, report); };
  return {"gptq", "Round weights to 2 to 8 bits so that layers' outputs change least (GPTQ)", add_options,
          run};
}

}  // namespace mcompress::cli
