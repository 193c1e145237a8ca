#include "quantize.h"

#include <map>
#include <memory>

#include "mcompress/base/output.h"

namespace mcompress::cli {

namespace {

// The options that static mode alone has, and whether they were given.
std::map<std::string, bool> static_options(const QuantizeCommand& options) {
  const QuantizeCommand plain;
  return {{"--observer", options.observer != plain.observer},
          {"--weight-observer", options.weight_observer != plain.weight_observer},
          {"--percentile", options.percentile != plain.percentile},
          {"--weight-bits", options.weight_bits != plain.weight_bits},
          {"--activation-bits", options.activation_bits != plain.activation_bits},
          {"--bias-correction", options.bias_correction},
          {"--sensitivity", options.sensitivity},
          {"--tune", options.tune}};
}

void check_dynamic_options(const QuantizeCommand& options) {
  for (const auto& [name, given] : static_options(options)) {
    if (given) throw error(Exit::kUsage, "{} goes with --mode static", name);
  }
  if (options.only_if_faster && options.calib_data.empty() && options.eval.data_path.empty()) {
    throw error(Exit::kUsage,
                "--only-if-faster needs --calib-data or --eval-data for the shapes of the inputs");
  }
  if (!options.calib_data.empty() && !options.only_if_faster)
    throw error(Exit::kUsage, "--calib-data goes with --mode static, or with --only-if-faster");
}

void check_training_options(const QuantizeCommand& options) {
  if (options.mode == "qat" && options.training.train_data.empty() && !options.dry_run)
    throw error(Exit::kUsage, "--mode qat needs --train-data");
  if (options.mode != "qat") {
    const bool by_blocks = options.mode == "weight-only" && !options.calib_data.empty();
    if (options.training.resume && !by_blocks)
      throw error(Exit::kUsage, "--resume goes with --mode qat, and with weight-only and --calib-data");
    TrainCommand training = options.training;
    training.resume = false;
    std::string given = given_train_option(training);
    if (given.empty() && !options.training.html.empty()) given = "--html";
    if (given.empty() && options.freeze_bn_after != 0) given = "--freeze-bn-after";
    if (given.empty() && options.freeze_observers_after) given = "--freeze-observers-after";
    if (given.empty() && options.learn_scales) given = "--learn-scales";
    if (given.empty() && !options.tutoring.teacher.empty()) given = "--teacher";
    if (!given.empty()) throw error(Exit::kUsage, "{} goes with --mode qat", given);
  }
  if (options.tutoring.teacher.empty()) refuse_teacher_options(options.tutoring);
  if (options.mode != "qat") return;
  check_teacher_options(options.tutoring);
  if (options.per_tensor) throw error(Exit::kUsage, "--per-tensor does not go with --mode qat");
  if (options.sensitivity || options.tune || options.only_if_faster || options.bias_correction) {
    throw error(
        Exit::kUsage,
        "--sensitivity, --tune, --only-if-faster and --bias-correction go with --mode static; leave layers "
        "out of --mode qat with --ignore");
  }
}

void check_static_options(const QuantizeCommand& options) {
  if (options.dtype != "int8")
    throw error(Exit::kUsage, "--dtype {} goes with --mode dynamic; here --weight-bits sets the type",
                options.dtype);
  if (options.runtime == "fbgemm") throw error(Exit::kUsage, "--runtime fbgemm goes with --mode dynamic");
  if (options.mode == "static" && options.calib_data.empty() && !options.dry_run)
    throw error(Exit::kUsage, "--mode {} needs --calib-data", options.mode);
  if (options.tune && (!options.gates.max_accuracy_drop || options.eval.data_path.empty()))
    throw error(Exit::kUsage, "--tune needs --max-accuracy-drop and --eval-data");
}

void check_weight_only_options(const QuantizeCommand& options) {
  const QuantizeCommand plain;
  std::map<std::string, bool> used = {{"--dtype", options.dtype != plain.dtype},
                                      {"--runtime", options.runtime != plain.runtime},
                                      {"--per-tensor", options.per_tensor},
                                      {"--only-if-faster", options.only_if_faster}};
  used.merge(static_options(options));
  for (const auto& [name, given] : used) {
    if (given)
      throw error(Exit::kUsage, "{} means nothing with --mode weight-only, which has --bits and --group-size",
                  name);
  }
  if (options.calib_data.empty() && options.nsamples != plain.nsamples)
    throw error(Exit::kUsage,
                "--nsamples goes with --calib-data, without which --mode weight-only reads no text");
}

void check_options(const QuantizeCommand& options) {
  check_compress_options(options, "quantize");
  if (options.dtype != "int8" && options.per_tensor)
    throw error(Exit::kUsage, "--per-tensor goes with --dtype int8 only");
  if (options.dtype != "int8" && options.runtime == "fbgemm")
    throw error(Exit::kUsage, "--runtime fbgemm goes with --dtype int8 only");
  check_training_options(options);
  if (options.mode == "weight-only") return check_weight_only_options(options);
  if (options.groups.embedding_bits == 4)
    throw error(Exit::kUsage, "--embeddings 4 goes with --mode weight-only");
  refuse_group_options(options.groups, "--mode weight-only");
  options.mode == "dynamic" ? check_dynamic_options(options) : check_static_options(options);
}

void quantize(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  check_options(options);
  const ModelFormat format = detect_model(options.model);
  check_for_format(options, format);
  const bool program = format == ModelFormat::kTorchScript;
  if (options.mode == "weight-only" && program) return quantize_program_weights(options, run, report);
  if (options.mode == "weight-only" && format != ModelFormat::kHuggingFace)
    throw error(Exit::kUsage,
                "'{}' is {}, and --mode weight-only takes a Hugging Face folder or TorchScript; pass one",
                options.model, name_of(format));
  const OutputKind kind = format == ModelFormat::kHuggingFace ? OutputKind::kFolder : OutputKind::kFile;
  if (!options.output.empty()) check_output(options.output, kind, run.force, run.inputs);
  if (options.mode == "weight-only")
    return options.calib_data.empty() ? quantize_weights(options, run, report)
                                      : quantize_by_importance(options, run, report);
  if (program) {
    if (options.mode == "dynamic") return quantize_program(options, run, report);
    // The plan of QAT is that of static mode.
    const bool trains = options.mode == "qat" && !options.dry_run;
    trains ? quantize_program_qat(options, run, report) : quantize_program_static(options, run, report);
  } else if (options.mode != "dynamic") {
    throw error(Exit::kUsage,
                "'{}' holds weights without a program, which --mode {} must run; pass TorchScript",
                options.model, options.mode);
  } else {
    quantize_checkpoint(options, format, run, report);
  }
}

}  // namespace

std::string obstacle_of(LayerKind kind, const QuantizeCommand& options) {
  if (is_convolution(kind)) return "dynamic mode treats no convolutions, static mode does";
  const bool left = kind == LayerKind::kEmbedding && options.groups.embedding_bits == 0;
  return left ? "embeddings are left alone without --embeddings" : "";
}

Command quantize_command() {
  auto options = std::make_shared<QuantizeCommand>();
  const auto add_options = [options](CLI::App& app) {
    add_compress_options(app, *options,
                         "What to write: TorchScript for TorchScript, a folder for a folder, safetensors for "
                         "the rest");
    app.add_option(
           "--mode", options->mode,
           "dynamic: weights are narrowed, activations when they come; static: activations too, on grids "
           "chosen by calibration; qat: the same, after training with rounded weights and activations; "
           "weight-only: weights of linear layers of a folder, or of those and convolutions of TorchScript, "
           "are rounded to nearest in groups, without data")
        ->check(CLI::IsMember({"dynamic", "static", "qat", "weight-only"}));
    app.add_option("--dtype", options->dtype, "Type of the stored weights")
        ->check(CLI::IsMember({"int8", "float16", "bfloat16"}));
    app.add_flag("--per-tensor", options->per_tensor, "One scale a weight instead of one an output channel");
    app.add_option("--runtime", options->runtime,
                   "How int8 layers compute. int8: oneDNN kernels; portable: plain operators, any CPU; "
                   "fbgemm: torch.ao's deprecated operator, fastest on small batches")
        ->check(CLI::IsMember({"int8", "portable", "fbgemm"}));
    add_embeddings_option(
        app, options->groups.embedding_bits,
        "Compress embeddings too, which --mode static does without being asked; with --mode "
        "weight-only to 8 or 4 bits");
    app.add_option("--calib-data,--dataset", options->calib_data,
                   "Inputs to calibrate on: data as for --eval-data, or one .npy; of a folder the train "
                   "split. With --mode "
                   "weight-only text, by whose inputs errors of channels are weighted");
    add_nsamples(app, options->nsamples);
    app.add_flag("--only-if-faster", options->only_if_faster,
                 "Time each layer on its own input, and leave those in float that do not gain");
    app.add_option(
           "--observer", options->observer,
           "How the range of a layer's inputs is chosen. minmax: all that was seen; moving-average: of the "
           "batches' ranges; histogram: ends move inwards while the squared error falls; percentile: leaves "
           "out 100 - P % on each side; mse: the least squared error")
        ->check(CLI::IsMember({"minmax", "moving-average", "histogram", "percentile", "mse"}));
    app.add_option("--percentile", options->percentile, "P of --observer percentile")
        ->check(number_from(50, 100));
    app.add_option(
           "--weight-observer", options->weight_observer,
           "How the scale of weights below 8 bits is chosen. minmax: by the largest weight; mse: the least "
           "squared error of the layer's outputs")
        ->check(CLI::IsMember({"minmax", "mse"}));
    app.add_option("--weight-bits", options->weight_bits, "Bits of a weight in the file")
        ->check(CLI::Range(2, 8));
    app.add_option("--activation-bits", options->activation_bits,
                   "Bits of a layer's inputs; none: they stay float")
        ->check(CLI::IsMember({"4", "5", "6", "7", "8", "none"}));
    app.add_flag(
        "--bias-correction", options->bias_correction,
        "Set the mean and deviation of each output channel back to what they were, by bias and scale");
    app.add_flag("--sensitivity", options->sensitivity,
                 "Measure on the calibration data what each layer costs alone");
    app.add_flag("--tune", options->tune,
                 "Keep the layers that cost most in float until --max-accuracy-drop holds");
    add_group_options(app, options->groups, "Weight-only");
    add_train_options(app, options->training, 0.0003);
    app.add_option(
           "--teacher", options->tutoring.teacher,
           "With --mode qat: a model to learn from, such as the one that is quantized before it was pruned")
        ->group("Distillation");
    add_teacher_options(app, options->tutoring);
    app.add_flag("--learn-scales", options->learn_scales, "With --mode qat: train the scales too (LSQ)");
    app.add_option(
           "--freeze-bn-after", options->freeze_bn_after,
           "With --mode qat: epochs that batch normalization sees batch statistics; 0: it is folded at once")
        ->check(CLI::Range(0, 100'000));
    add_count(app, "--freeze-observers-after", options->freeze_observers_after,
              "With --mode qat: epochs that input ranges follow the data; default half of them");
  };
  const auto run = [options](const RunOptions& r, Report& report) { quantize(*options, r, report); };
  return {"quantize", "Store weights in fewer bits", add_options, run};
}

}  // namespace mcompress::cli
