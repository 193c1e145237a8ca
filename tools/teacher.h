#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "command.h"
#include "mcompress/methods/distill.h"
#include "models.h"
#include "train_options.h"

namespace mcompress::cli {

// The settings of commands that learn from a teacher.
struct TeacherCommand {
  std::string teacher, loss = "kl", cache;
  double temperature = 4, alpha = 0.5;
  int64_t top_k = 0;
  std::vector<std::string> hints;  // TEACHER_LAYER=STUDENT_LAYER
  std::string hint_kind = "mse";
  double hint_weight = 1;

  bool needs_labels() const { return alpha < 1; }
};
void add_teacher_options(CLI::App& app, TeacherCommand& command);  // but for the teacher and hints
void add_hint_options(CLI::App& app, TeacherCommand& command);
// What is wrong with them before any model is loaded. Throws Error: 2, or 66 and 65 where the teacher is no
// program.
void check_teacher_options(const TeacherCommand& command);
// Names the option that was given though there is no teacher. Throws Error(2).
void refuse_teacher_options(const TeacherCommand& command);

// A teacher that is ready to be learned from: its scores lie in a cache, or it runs beside the student where
// the data is augmented or hints are given.
class Teacher {
 public:
  // `hash` is the teacher's. Refuses (65) a teacher that tells other classes apart than the student; runs the
  // teacher over the data where no cache has its scores. The cache is `output`.teacher without --cache.
  Teacher(const TeacherCommand& command, const BackgroundHash& hash, const TrainCommand& training,
          const EvalOptions& eval, const std::string& student_path, const torch::jit::Module& student,
          const std::string& output, const RunOptions& run, const Dataset& data, Report& report);
  ~Teacher();
  Teacher(const Teacher&) = delete;
  Teacher& operator=(const Teacher&) = delete;

  const torch::jit::Module& program() const;

  // Modules of the student whose outputs the hints need.
  std::vector<std::string> observed() const;

  // Makes a task learn from the teacher. The teacher and the student must outlive it. Throws Error(65) where
  // a hint does not fit.
  void attach(TrainTask& task, TrainedProgram& student, uint64_t seed) const;

  // Without labels the rows that score an epoch have the class that the teacher gives them.
  void label(TrainData& data) const;

  // Removes the scores, unless --cache keeps them.
  void finish() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mcompress::cli
