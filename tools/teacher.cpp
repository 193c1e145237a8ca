#include "teacher.h"

#include <algorithm>
#include <filesystem>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "mcompress/base/error.h"
#include "mcompress/base/output.h"
#include "mcompress/base/sha256.h"
#include "mcompress/methods/teacher.h"
#include "mcompress/model/program.h"

namespace mcompress::cli {

namespace fs = std::filesystem;

namespace {

// What decides the scores beside the teacher; kernels may round by the size of a batch.
std::string data_key(const TrainCommand& training, const EvalOptions& eval) {
  const DataOptions& data = eval.data;
  const std::string text =
      fmt::format("{}\n{}\n{}\n{}\n{}\n{}\n{}", hash_of_data(training.train_data), data.scale.value_or(0),
                  fmt::join(data.mean, ","), fmt::join(data.stddev, ","), data.layout, training.train_limit,
                  eval.batch_size);
  return sha256_of(std::as_bytes(std::span(text)));
}

// A module that two hints name is observed once.
std::vector<std::string> unique(const std::vector<std::string>& names) {
  std::vector<std::string> once;
  for (const std::string& name : names) {
    if (std::find(once.begin(), once.end(), name) == once.end()) once.push_back(name);
  }
  return once;
}

// What the unique modules gave, by hint.
std::vector<at::Tensor> by_hint(const std::vector<std::string>& names,
                                const std::vector<at::Tensor>& outputs) {
  const std::vector<std::string> once = unique(names);
  std::vector<at::Tensor> result;
  for (const std::string& name : names)
    result.push_back(outputs[static_cast<size_t>(std::find(once.begin(), once.end(), name) - once.begin())]);
  return result;
}

// Calls `use`, and says of what it throws that it was the teacher.
template <typename Use>
auto in_teacher(Use use) {
  try {
    return use();
  } catch (const Error& failure) {
    throw error(failure.code(), "in the teacher: {}", failure.what());
  }
}

// Refuses a folder for scores that has the name of a file of the run, such as OUT.seed3.checkpoint.
void check_cache(const std::string& cache, const std::string& output, const std::string& html,
                 const RunOptions& run) {
  std::vector<std::string> files = run.inputs;
  files.insert(files.end(), {output, output + ".teacher", run.report, html});
  const std::string name = fs::path(cache).lexically_normal().string();
  bool taken =
      name.starts_with(fs::path(output).lexically_normal().string() + ".") && name.ends_with(".checkpoint");
  for (const std::string& file : files)
    taken = taken || (!file.empty() && is_inside(file, cache) && is_inside(cache, file));
  if (taken)
    throw error(Exit::kCannotCreate, "--cache '{}' has the name of a file of this run; choose another",
                cache);
}

}  // namespace

struct Teacher::Impl {
  DistillOptions loss;
  HintOptions hints;
  torch::jit::Module program;
  at::Tensor sample;  // the first batch of the data, prepared
  int64_t batch_size = 0, classes = 0;
  std::optional<TeacherScores> scores = {};     // empty where the teacher runs beside the student
  std::optional<OpenProgram> observed = {};     // where it does
  std::string temporary = {}, checkpoint = {};  // file of the scores that goes with the run, and of its state

  // The scores of one batch, and the outputs of the hints' modules.
  TeacherBatch run(const at::Tensor& inputs, std::vector<at::Tensor>& features) {
    const at::NoGradGuard guard;
    std::vector<at::Tensor> outputs(unique(hints.teacher).size());
    const at::Tensor scores = observed->run(inputs.clone(), [&](size_t module, const at::Tensor& value) {
      if (outputs[module].defined())
        throw bad_data("the teacher uses a module of a hint more than once in a forward pass");
      outputs[module] = value;
      return value.clone();  // what follows may change it in place
    });
    if (scores.dim() != 2 || scores.size(0) != inputs.size(0) || !scores.isfinite().all().item<bool>())
      throw bad_data("the teacher's output is not [batch, classes], or holds NaN or infinity");
    features = by_hint(hints.teacher, outputs);
    return {scores.to(at::kFloat), {}};
  }

  void open_scores(const std::string& path, bool temporary_file, const TeacherSource& source,
                   const Dataset& data, const TeacherCommand& command, const RunOptions& options,
                   Report& report) {
    if (fs::exists(path)) {
      try {
        scores = read_teacher_scores(path, source, data.inputs.size(0), classes);
        report.teacher->reused = true;
        return;
      } catch (const Error&) {
        if (!temporary_file || !options.force) throw;
      }
    }
    timed(report, "run the teacher", [&] {
      write_teacher_scores(path, program_forward(program), data, batch_size, command.top_k, source);
    });
    scores = read_teacher_scores(path, source, data.inputs.size(0), classes);
  }
};

Teacher::Teacher(const TeacherCommand& command, const BackgroundHash& hash, const TrainCommand& training,
                 const EvalOptions& eval, const std::string& student_path, const torch::jit::Module& student,
                 const std::string& output, const RunOptions& run, const Dataset& data, Report& report)
    : impl_(new Impl{distill_options(command, training.options.label_smoothing),
                     hint_options(command),
                     load_dense(command.teacher, run.trust_code),
                     {},
                     eval.batch_size}) {
  impl_->sample = data.batch(0, std::min<int64_t>(2, data.size()));
  const at::Tensor output_scores =
      in_teacher([&] { return program_forward(impl_->program)(impl_->sample.clone()); });
  if (output_scores.dim() != 2)
    throw bad_data("the output of teacher '{}' is not [batch, classes]", command.teacher);
  impl_->classes = output_scores.size(1);
  const at::Tensor answers = program_forward(student)(impl_->sample.clone());
  if (answers.dim() != 2) throw bad_data("the output of model '{}' is not [batch, classes]", student_path);
  if (answers.size(1) != impl_->classes) {
    throw bad_data("teacher '{}' tells {} classes apart and model '{}' {}; they must be the same",
                   command.teacher, impl_->classes, student_path, answers.size(1));
  }
  report.teacher.emplace();
  report.teacher->path = command.teacher;
  report.teacher->sha256 = hash.get();
  const AugmentOptions& augment = training.options.augment;
  const bool live = augment.flip || augment.crop > 0 || !impl_->hints.teacher.empty();
  report.teacher->live = live;
  if (live) {
    if (!command.cache.empty() || command.top_k > 0)
      report.warnings.emplace_back(
          "with --flip, --crop or --hint the teacher runs beside the student, so --cache and --top-k have no "
          "effect");
    impl_->observed.emplace(
        in_teacher([&] { return observe_outputs(impl_->program, unique(impl_->hints.teacher), 0); }),
        std::vector<Layer>(), std::vector<bool>(), std::vector<bool>());
    return;
  }
  const TeacherSource source = {
      {"kind", "mcompress teacher scores 1"}, {"teacher", hash.get()},
      {"teacher_path", command.teacher},      {"data", data_key(training, eval)},
      {"data_path", training.train_data},     {"top_k", fmt::format("{}", command.top_k)}};
  constexpr size_t kDigits = 16;
  std::string path = output + ".teacher";
  if (command.cache.empty()) {
    impl_->temporary = path;
    impl_->checkpoint = output + ".checkpoint";
  } else {
    check_cache(command.cache, output, training.html, run);
    std::error_code failure;
    fs::create_directories(command.cache, failure);
    if (failure == std::errc::permission_denied)
      throw error(Exit::kPermission, "--cache '{}' cannot be made: its folder is not writable",
                  command.cache);
    if (failure || !fs::is_directory(command.cache))
      throw error(Exit::kCannotCreate, "--cache '{}' is no folder and cannot become one", command.cache);
    path = fmt::format("{}/{}-{}{}.safetensors", command.cache, source.at("teacher").substr(0, kDigits),
                       source.at("data").substr(0, kDigits),
                       command.top_k > 0 ? fmt::format("-{}", command.top_k) : "");
  }
  if (!fs::exists(path)) check_output(path, OutputKind::kFile, true, run.inputs);
  impl_->open_scores(path, command.cache.empty(), source, data, command, run, report);
  if (!command.cache.empty()) report.teacher->cache = path;
  report.teacher->cache_bytes = fs::file_size(path);
}

Teacher::~Teacher() {
  std::error_code nobody_to_tell;
  if (impl_->temporary.empty() || fs::exists(impl_->checkpoint, nobody_to_tell)) return;
  fs::remove(impl_->temporary, nobody_to_tell);
}

const torch::jit::Module& Teacher::program() const { return impl_->program; }

std::vector<std::string> Teacher::observed() const { return unique(impl_->hints.student); }

void Teacher::attach(TrainTask& task, TrainedProgram& student, uint64_t seed) const {
  Impl* teacher = impl_.get();
  if (teacher->scores) {
    task.loss = [teacher](const at::Tensor& scores, const TrainBatch& batch) {
      return distill_loss(scores, teacher->scores->at(batch.places), batch.labels, teacher->loss);
    };
    return;
  }
  const auto outputs = [teacher, &student] { return by_hint(teacher->hints.student, student.observed()); };
  std::shared_ptr<const Hints> hints;
  if (!teacher->hints.teacher.empty()) {
    std::vector<at::Tensor> features;
    teacher->run(teacher->sample, features);
    student.evaluate(teacher->sample.clone());
    hints = std::make_shared<const Hints>(teacher->hints, features, outputs(), seed);
    for (const Trainable& parameter : hints->parameters()) task.parameters.push_back(parameter);
  }
  // The student may change its inputs, and the teacher needs them.
  task.forward = [forward = task.forward](const at::Tensor& inputs) { return forward(inputs.clone()); };
  task.loss = [teacher, hints, outputs](const at::Tensor& scores, const TrainBatch& batch) {
    std::vector<at::Tensor> features;
    const TeacherBatch target = teacher->run(batch.inputs, features);
    const at::Tensor loss = distill_loss(scores, target, batch.labels, teacher->loss);
    return hints ? loss + hints->loss(features, outputs()) : loss;
  };
}

void Teacher::label(TrainData& data) const {
  if (!data.valid || data.valid->labels.defined()) return;
  std::vector<at::Tensor> classes;
  const auto forward = program_forward(impl_->program);
  data.valid->for_batches(impl_->batch_size, [&](const at::Tensor& batch, int64_t, int64_t) {
    classes.push_back(forward(batch).argmax(1));
  });
  data.valid->labels = at::cat(classes).clone();
}

}  // namespace mcompress::cli
