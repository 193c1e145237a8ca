#include <filesystem>

#include <ATen/ATen.h>

#include "log.h"
#include "mcompress/methods/trained_program.h"
#include "mcompress/model/program.h"
#include "models.h"
#include "quantize.h"
#include "quantize_static.h"

namespace mcompress::cli {

namespace {

QatOptions qat_options(const QuantizeCommand& options) {
  QatOptions qat;
  qat.grid = method_options(options);
  qat.learn_scales = options.learn_scales;
  qat.freeze_bn_after = options.freeze_bn_after;
  qat.freeze_observers_after =
      options.freeze_observers_after.value_or((options.training.options.epochs + 1) / 2);
  return qat;
}

// The rows that the grids start from: --calib-data, or the first of the training rows.
Dataset calibration_rows(const QuantizeCommand& options, const Dataset& train, Report& report) {
  auto rows = read_calibration(options.calib_data, options.nsamples, options, report);
  return rows ? *rows : train.first(options.nsamples);
}

// Static layers for training to start from. With batch statistics nothing is corrected, since the
// normalization does that.
StaticLayers start_layers(StaticRun& state, const std::vector<Observer>& observers, const Dataset& data,
                          const QatOptions& options) {
  StaticOptions grid = options.grid;
  grid.bias_correction = options.freeze_bn_after == 0;
  StaticLayers made = quantize_static(state.folded, observers, &data, grid);
  if (grid.bias_correction) correct_biases(state.folded, made, data);
  return made;
}

}  // namespace

void quantize_program_qat(const QuantizeCommand& options, const RunOptions& run, Report& report) {
  const std::optional<Dataset> data = read_eval_data(options, report);
  const auto seed = static_cast<uint64_t>(run.seed);
  const bool taught = !options.tutoring.teacher.empty(),
             labelled = !taught || options.tutoring.needs_labels();
  TrainData rows = read_train_data(options.training, options.eval.data, seed, labelled, report);
  const Dataset calibration = calibration_rows(options, rows.train, report);
  BackgroundHash hash(options.model);
  std::optional<BackgroundHash> teacher_hash;
  if (taught) teacher_hash.emplace(options.tutoring.teacher);
  const auto program = timed(report, "load", [&] { return load_dense(options.model, run.trust_code); });
  const auto trainee = load_dense(options.model, run.trust_code);
  warn_of_tracing(trainee, report);
  report.quantization.emplace();
  check_training(program, options.training, rows, options.eval, data, report);
  StaticRun state = start_static(trainee, options);
  const QatOptions method = qat_options(options);
  const CheckpointOptions checkpoint = checkpoint_options(
      options.training,
      {hash.get(), hash_of_data(options.calib_data), teacher_hash ? teacher_hash->get() : ""}, options.output,
      run, report);
  warn_of_fresh_start(checkpoint, report);
  std::optional<Teacher> teacher;
  if (taught) {
    teacher.emplace(options.tutoring, *teacher_hash, options.training, options.eval, options.model, program,
                    options.output, run, rows.train, report);
    teacher->label(rows);
  }
  evaluate_input(options, report);
  const std::vector<Observer> observers =
      timed(report, "calibrate", [&] { return observe(state.folded, calibration, options.eval.batch_size); });
  check_folding(trainee, state, calibration, report);
  state.made = start_layers(state, observers, calibration, method);
  keep_unseen(state);

  TrainedProgram model(trainee, state.folded.layers, state.folded.followers, state.made, method);
  const Forward rounded = [&](const at::Tensor& input) { return model.evaluate(input); };
  TrainTask task = model.task();
  if (teacher) teacher->attach(task, model, seed);
  score_epochs(task, model, rows, options.eval.batch_size);
  const TrainOptions train_settings = train_options(options.training, options.eval.batch_size, run.seed);
  const TrainResult result =
      timed(report, "train", [&] { return train(task, rows.train, train_settings, checkpoint); });
  report.training = Training{result, std::nullopt};
  if (data) {
    report.training->fake_quantized.emplace();
    report.training->fake_quantized->accuracy = timed(report, "evaluate before conversion", [&] {
      return measure_accuracy(rounded, *data, options.eval.batch_size);
    });
  }
  state.made = model.convert();
  add_other_weights(program, state.folded.layers, report);
  add_records(state, options, report);
  const auto quantized =
      replace_static(model.program(), state.folded.layers, state.made, method.grid.runtime);
  write_quantized(options, run, program, quantized, state.folded.layers, weights_of(state),
                  data ? &*data : nullptr, hash, report);
  write_learning_page(options.training, options.output, run, report);
  std::filesystem::remove(checkpoint.path);
}

}  // namespace mcompress::cli
