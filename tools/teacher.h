#pragma once

#include <memory>
#include <string>
#include <vector>

#include "command.h"
#include "models.h"
#include "teacher_options.h"
#include "train_options.h"

namespace mcompress::cli {

// A teacher that is ready to be learned from: its scores lie in a cache, or it runs beside the student where
// the data is augmented or hints are given.
class Teacher {
 public:
  // `hash` is the teacher's. Refuses (65) a teacher that tells other classes apart than the student; runs the
  // teacher over the data where no cache has its scores. The cache is `output`.teacher without --cache; it
  // goes with the teacher, unless a checkpoint of the run needs it.
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

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mcompress::cli
