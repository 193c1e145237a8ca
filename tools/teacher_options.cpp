#include "teacher_options.h"

#include <map>

#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"

namespace mcompress::cli {

namespace {

constexpr const char* kGroup = "Distillation";

}  // namespace

DistillOptions distill_options(const TeacherCommand& command, double label_smoothing) {
  static const std::map<std::string, DistillLoss> kLosses = {{"kl", DistillLoss::kKl},
                                                             {"reverse-kl", DistillLoss::kReverseKl},
                                                             {"jsd", DistillLoss::kJsd},
                                                             {"mse-logits", DistillLoss::kMseLogits}};
  return {kLosses.at(command.loss), command.temperature, command.alpha, label_smoothing};
}

HintOptions hint_options(const TeacherCommand& command) {
  HintOptions options;
  options.kind = command.hint_kind == "at" ? HintKind::kAttention : HintKind::kMse;
  options.weight = command.hint_weight;
  for (const std::string& hint : command.hints) {
    const size_t equals = hint.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == hint.size())
      throw error(Exit::kUsage, "--hint '{}' is not TEACHER_LAYER=STUDENT_LAYER, such as 'conv3=conv2'",
                  hint);
    options.teacher.push_back(hint.substr(0, equals));
    options.student.push_back(hint.substr(equals + 1));
  }
  return options;
}

void add_teacher_options(CLI::App& app, TeacherCommand& command) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(kGroup);
  };
  add("--alpha", command.alpha,
      "Share of the teacher in the loss, 0 to 1; the rest is cross entropy; 1 needs no labels")
      ->check(number_from(0, 1));
  add("--temperature", command.temperature, "What scores are divided by before they are compared")
      ->check(number_from(0.01, 1000));
  add("--loss", command.loss,
      "kl: KL(teacher, student); reverse-kl: KL(student, teacher); jsd: both against their mean; mse-logits: "
      "mean square of the scores' differences")
      ->check(CLI::IsMember({"kl", "reverse-kl", "jsd", "mse-logits"}));
  add("--cache", command.cache,
      "Folder that keeps the teacher's scores, so that the next run with this teacher and data does not run "
      "it");
  add("--top-k", command.top_k, "Keep the scores of the k highest classes only; 0: all")
      ->check(CLI::Range(0, 1'000'000));
}

void add_hint_options(CLI::App& app, TeacherCommand& command) {
  app.add_option("--hint", command.hints,
                 "TEACHER_LAYER=STUDENT_LAYER: modules whose outputs are compared too; repeatable")
      ->allow_extra_args(false)
      ->group(kGroup);
  app.add_option("--hint-kind", command.hint_kind,
                 "mse: of outputs, after a learned projection where widths differ; at: of attention maps")
      ->check(CLI::IsMember({"mse", "at"}))
      ->group(kGroup);
  app.add_option("--hint-weight", command.hint_weight, "What the loss of the hints is multiplied by")
      ->check(at_least(0))
      ->group(kGroup);
}

void check_teacher_options(const TeacherCommand& command) {
  hint_options(command);
  if (command.top_k > 0 && command.loss != "kl")
    throw error(Exit::kUsage, "--top-k goes with --loss kl; {} compares all classes", command.loss);
  if (command.loss == "mse-logits" && command.temperature != TeacherCommand().temperature)
    throw error(Exit::kUsage,
                "--loss mse-logits compares scores without a temperature; leave out --temperature");
  if (!command.teacher.empty() && detect_model(command.teacher) != ModelFormat::kTorchScript)
    throw bad_data("teacher '{}' holds weights without a program, so it cannot be run; pass TorchScript",
                   command.teacher);
  if (command.hints.empty() && (command.hint_kind != "mse" || command.hint_weight != 1))
    throw error(Exit::kUsage, "--hint-kind and --hint-weight go with --hint");
}

void refuse_teacher_options(const TeacherCommand& command) {
  const TeacherCommand plain;
  const std::map<std::string, bool> used = {{"--alpha", command.alpha != plain.alpha},
                                            {"--temperature", command.temperature != plain.temperature},
                                            {"--loss", command.loss != plain.loss},
                                            {"--cache", !command.cache.empty()},
                                            {"--top-k", command.top_k != plain.top_k}};
  for (const auto& [name, given] : used) {
    if (given) throw error(Exit::kUsage, "{} needs --teacher", name);
  }
}

}  // namespace mcompress::cli
