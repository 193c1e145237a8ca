#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "command.h"
#include "mcompress/methods/distill.h"

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

// As the method takes them. Throws Error(2) for a hint that is none.
DistillOptions distill_options(const TeacherCommand& command, double label_smoothing);
HintOptions hint_options(const TeacherCommand& command);

}  // namespace mcompress::cli
