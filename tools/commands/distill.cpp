#include <algorithm>
#include <filesystem>
#include <memory>

#include <ATen/ATen.h>

#include "compress_steps.h"
#include "log.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/program.h"
#include "models.h"
#include "teacher.h"
#include "train_options.h"

namespace mcompress::cli {

namespace {

// The settings of one `mcompress distill`; `model` is the teacher, which the student is measured against.
struct DistillCommand : CompressOptions {
  std::string student;
  TrainCommand training;
  TeacherCommand tutoring;
  bool init_from_teacher = false, baseline = false;
  int64_t seeds = 1;
};

void check_options(const DistillCommand& options) {
  check_compress_options(options, "distill");
  check_teacher_options(options.tutoring);
  if (options.training.train_data.empty()) throw error(Exit::kUsage, "distill needs --train-data");
  if (options.baseline && !options.tutoring.needs_labels())
    throw error(Exit::kUsage, "--baseline trains on labels alone, and --alpha 1 is for data without them");
  for (const std::string& path : {options.model, options.student}) {
    if (detect_model(path) != ModelFormat::kTorchScript)
      throw bad_data("'{}' holds weights without a program, so it cannot be run; pass TorchScript", path);
  }
}

// A run of the trainer: one student, with or without teacher.
struct Lesson {
  std::string name;  // "seed 3, no teacher"
  bool taught = true;
  int64_t seed = 0;
  CheckpointOptions checkpoint;
};

class School {
 public:
  School(const DistillCommand& options, const RunOptions& run, const TrainData& rows,
         const std::optional<Dataset>& data)
      : options_(options), run_(run), rows_(rows), data_(data) {}

  torch::jit::Module load_student() const { return load_dense(options_.student, run_.trust_code); }

  // Trains one student and returns it in eval mode, with nothing of the training left in it.
  torch::jit::Module train_student(const Teacher& teacher, const Lesson& lesson, TrainResult& result) const {
    const auto student = load_student();
    if (options_.init_from_teacher) copy_values(teacher.program(), student);
    {
      TrainedProgram model(student, list_layers(student),
                           lesson.taught ? teacher.observed() : std::vector<std::string>());
      TrainTask task = model.task();
      if (lesson.taught) teacher.attach(task, model, static_cast<uint64_t>(lesson.seed));
      score_epochs(task, model, rows_, options_.eval.batch_size);
      TrainOptions settings = train_options(options_.training, options_.eval.batch_size, lesson.seed);
      settings.label = lesson.name;
      result = train(task, rows_.train, settings, lesson.checkpoint);
    }
    const auto fresh = load_student();
    copy_values(student, fresh);
    return fresh;
  }

  // Top-1 of a trained student, on --eval-data or, without it, of its best epoch.
  std::optional<Share> top1_of(const torch::jit::Module& student) const {
    const Dataset* rows = data_ ? &*data_ : rows_.valid ? &*rows_.valid : nullptr;
    if (rows == nullptr) return std::nullopt;
    return measure_accuracy(program_forward(student), *rows, options_.eval.batch_size).top1;
  }

 private:
  const DistillCommand& options_;
  const RunOptions& run_;
  const TrainData& rows_;
  const std::optional<Dataset>& data_;
};

void list_student(const torch::jit::Module& student, Report& report) {
  for (const Layer& layer : list_layers(student)) {
    const uint64_t bytes = layer.weight.nbytes();
    report.layers.push_back({layer.name, name_of(layer.kind), "train", "", bytes, bytes});
  }
}

// What --init-from-teacher copies. Refuses (65) a teacher without anything that fits.
std::vector<std::string> copied_from_teacher(const DistillCommand& options, const RunOptions& run,
                                             const torch::jit::Module& student) {
  if (!options.init_from_teacher) return {};
  const auto teacher = load_dense(options.model, run.trust_code);
  const std::vector<std::string> names = copy_values(teacher, reload_program(student));
  for (const auto& parameter : student.named_parameters()) {
    if (std::find(names.begin(), names.end(), parameter.name) != names.end()) return names;
  }
  throw bad_data(
      "no parameter of student '{}' has the name and shape of one of the teacher's; leave out "
      "--init-from-teacher",
      options.student);
}

void write_student(const DistillCommand& options, const RunOptions& run, const std::string& serialized,
                   const Teacher& teacher, const std::optional<Dataset>& data, Report& report) {
  const auto reopened = write_reopened(options, run, serialized, report);
  report.output =
      describe_artifact(options.output, name_of(ModelFormat::kTorchScript), count_program(reopened));
  if (data) evaluate_programs(teacher.program(), reopened, *data, options, report);
}

void distill(const DistillCommand& options, const RunOptions& run, Report& report) {
  check_options(options);
  if (!options.output.empty()) check_output(options.output, OutputKind::kFile, run.force, run.inputs);
  const std::optional<Dataset> data = read_eval_data(options, report);
  TrainData rows = read_train_data(options.training, options.eval.data, static_cast<uint64_t>(run.seed),
                                   options.tutoring.needs_labels(), report);
  if ((options.seeds > 1 || options.baseline) && !data && !rows.valid) {
    throw error(Exit::kUsage,
                "--seeds and --baseline need rows to compare on: --eval-data, --valid-data or --valid-share");
  }
  const School school(options, run, rows, data);
  const BackgroundHash hash(options.student);
  const auto student = timed(report, "load", [&] { return school.load_student(); });
  const BackgroundHash teacher_hash(options.model);
  if (hash.get() == teacher_hash.get()) {
    throw error(Exit::kUsage, "teacher '{}' and student '{}' are the same model", options.model,
                options.student);
  }
  const std::vector<std::string> copied = copied_from_teacher(options, run, student);
  warn_of_tracing(student, report);
  check_training(student, options.training, rows, options.eval, data, report);
  report.predicted_bytes = count_program_bytes(serialize_program(student));
  report.distillation.emplace();
  list_student(student, report);
  if (options.dry_run) return finish_dry_run(run, report);
  check_output(options.output, OutputKind::kFile, run.force, run.inputs, *report.predicted_bytes);
  // Each run has a checkpoint of its own, which stays until the output is safe.
  std::vector<Lesson> lessons;
  for (int64_t i = 0; i < options.seeds; ++i) {
    for (const bool taught : {true, false}) {
      if (!taught && !options.baseline) continue;
      std::string path = options.output;
      if (i > 0) path += fmt::format(".seed{}", run.seed + i);
      if (!taught) path += ".baseline";
      lessons.push_back(
          {fmt::format("seed {}{}", run.seed + i, taught ? "" : ", no teacher"), taught, run.seed + i,
           checkpoint_options(options.training, {hash.get(), teacher_hash.get()}, path, run, report)});
    }
  }
  warn_of_fresh_start(lessons.front().checkpoint, report);
  const Teacher teacher(options.tutoring, teacher_hash, options.training, options.eval, options.student,
                        student, options.output, run, rows.train, report);
  teacher.label(rows);
  evaluate_input(options, report);
  Distillation& result = *report.distillation;
  result.copied = copied;
  result.student =
      describe_artifact(options.student, name_of(ModelFormat::kTorchScript), count_program(student), hash);
  result.scored_on = data ? "eval" : rows.valid ? "validation" : "";

  std::string serialized;
  for (const Lesson& lesson : lessons) {
    const bool taught = lesson.taught;
    TrainResult training;
    const auto trained = timed(report, "train " + lesson.name,
                               [&] { return school.train_student(teacher, lesson, training); });
    if (taught) result.runs.push_back({lesson.seed, {}, {}});
    (taught ? result.runs.back().top1 : result.runs.back().baseline) =
        timed(report, "compare", [&] { return school.top1_of(trained); });
    if (lesson.seed != run.seed) continue;
    if (taught) {
      report.training = Training{training, std::nullopt};
      serialized = serialize_program(trained);
    } else {
      result.baseline_epochs = training.epochs;
    }
  }
  report.input = describe_artifact(options.model, name_of(ModelFormat::kTorchScript),
                                   count_program(teacher.program()), teacher_hash);
  write_student(options, run, serialized, teacher, data, report);
  write_learning_page(options.training, options.output, run, report);
  for (const Lesson& lesson : lessons) std::filesystem::remove(lesson.checkpoint.path);
  conclude(options, report);
}

}  // namespace

Command distill_command() {
  auto options = std::make_shared<DistillCommand>();
  const auto add_options = [options](CLI::App& app) {
    app.add_option("teacher,--teacher", options->tutoring.teacher, "TorchScript model to learn from")
        ->required();
    app.add_option("student,--student", options->student, "TorchScript model that is trained")->required();
    add_output_options(app, *options, "What to write: the trained student");
    add_teacher_options(app, options->tutoring);
    add_hint_options(app, options->tutoring);
    app.add_flag("--init-from-teacher", options->init_from_teacher,
                 "Start with the teacher's parameters and buffers where names and shapes are equal")
        ->group("Distillation");
    app.add_flag("--baseline", options->baseline,
                 "Also train the same student without the teacher, and report both")
        ->group("Distillation");
    app.add_option(
           "--seeds", options->seeds,
           "Repeat with so many seeds, from --seed on, and report mean and deviation; the first is written")
        ->check(CLI::Range(1, 1000))
        ->group("Distillation");
    add_train_options(app, options->training, 0.05);
  };
  const auto run = [options](const RunOptions& r, Report& report) {
    options->model = options->tutoring.teacher;
    distill(*options, r, report);
  };
  return {"distill", "Train a small model on what a large one answers", add_options, run};
}

}  // namespace mcompress::cli
