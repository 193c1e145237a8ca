#include <cmath>
#include <filesystem>

#include <ATen/ATen.h>

#include "mcompress/methods/trained_program.h"
#include "mcompress/model/program.h"
#include "prune.h"

namespace mcompress::cli {

namespace {

// Prunes step by step while the weights are trained; what is zero stays zero. The steps lie evenly in the
// first two thirds of the training, the first one before it.
class GradualPruning {
 public:
  GradualPruning(const ProgramWeights& chosen, const PruneCommand& options, uint64_t seed, TrainTask& task)
      : chosen_(chosen), options_(options), seed_(seed) {
    for (const at::Tensor& tensor : chosen.tensors) {
      zeros_.push_back(at::zeros(tensor.sizes(), at::kBool));
      for (Trainable& parameter : task.parameters) {
        if (parameter.value.data_ptr() != tensor.data_ptr()) continue;
        if (parameter.zeros.defined()) zeros_.back().copy_(parameter.zeros);  // that it came with
        parameter.zeros = zeros_.back();
      }
    }
    apply(0);
    task.begin_step = [this](int64_t step, int64_t steps) {
      int64_t last = 0;  // of several that fall on one training step, the others are part of it
      for (int64_t i = 1; i < count(); ++i) {
        if (step == step_of(i, steps)) last = i;
      }
      if (last > 0) apply(last);
    };
  }

  // The first epoch, from 0, that all weights are pruned in to the end.
  int64_t complete_from(int64_t epochs) const {
    if (count() == 1) return 0;
    return 1 + epochs * 2 * (count() - 1) / (3 * count());
  }

 private:
  static constexpr int64_t kSteps = 10;

  int64_t count() const { return options_.schedule == "one-shot" ? 1 : options_.steps.value_or(kSteps); }
  int64_t step_of(int64_t i, int64_t steps) const { return i * 2 * steps / (3 * count()); }

  // Of the amount that is asked for, what is zero after step i; cubic as in arXiv:1710.01878.
  double part_at(int64_t i) const {
    const double done = static_cast<double>(i + 1) / static_cast<double>(count());
    return options_.schedule == "cubic" ? 1 - std::pow(1 - done, 3) : done;
  }

  void apply(int64_t i) {
    const std::vector<RowMask> masks = choose_masks(chosen_.weights, options_, seed_, part_at(i));
    for (size_t k = 0; k < masks.size(); ++k) {
      zeros_[k].logical_or_(masks[k](0, zeros_[k].size(0)).view(zeros_[k].sizes()));
      chosen_.tensors[k].masked_fill_(zeros_[k], 0);
    }
  }

  const ProgramWeights& chosen_;
  const PruneCommand& options_;
  uint64_t seed_;
  std::vector<at::Tensor> zeros_;
};

}  // namespace

void check_finetune(const PruneCommand& options) {
  if (!options.finetune) {
    std::string given = given_train_option(options.training);
    if (given.empty() && !options.tutoring.teacher.empty()) given = "--teacher";
    if (given.empty() && options.schedule != "one-shot") given = "--schedule";
    if (given.empty() && options.steps) given = "--steps";
    if (!given.empty()) throw error(Exit::kUsage, "{} goes with --finetune", given);
  } else {
    if (!options.sweep.empty()) throw error(Exit::kUsage, "--sweep trains nothing; leave out --finetune");
    if (options.training.train_data.empty() && !options.dry_run)
      throw error(Exit::kUsage, "--finetune needs --train-data");
    if (options.steps && options.schedule == "one-shot")
      throw error(Exit::kUsage, "--steps goes with --schedule linear or cubic");
    const bool groups = parse_pattern(options.pattern).kind == SparsityPattern::Kind::kGroups;
    if (groups && options.schedule != "one-shot")
      throw error(Exit::kUsage, "--pattern {} is pruned at once; use --schedule one-shot", options.pattern);
  }
  if (options.tutoring.teacher.empty()) refuse_teacher_options(options.tutoring);
  check_teacher_options(options.tutoring);
}

Finetuning::Finetuning(const PruneCommand& options, const RunOptions& run, Report& report)
    : options_(options), run_(run), report_(report) {
  const bool labelled = options.tutoring.teacher.empty() || options.tutoring.needs_labels();
  rows_ =
      read_train_data(options.training, options.eval.data, static_cast<uint64_t>(run.seed), labelled, report);
}

void Finetuning::prepare(const torch::jit::Module& program, const BackgroundHash& hash) {
  warn_of_tracing(program, report_);
  check_training(program, options_.training, rows_, options_.eval, {}, report_);
  std::optional<BackgroundHash> teacher_hash;
  if (!options_.tutoring.teacher.empty()) teacher_hash.emplace(options_.tutoring.teacher);
  checkpoint_ = checkpoint_options(
      options_.training,
      {hash.get(), hash_of_data(options_.calib_data), teacher_hash ? teacher_hash->get() : ""},
      options_.output, run_, report_);
  warn_of_fresh_start(checkpoint_, report_);
  if (!teacher_hash) return;
  teacher_.emplace(options_.tutoring, *teacher_hash, options_.training, options_.eval, options_.model,
                   program, options_.output, run_, rows_.train, report_);
  teacher_->label(rows_);
}

void Finetuning::train(const torch::jit::Module& program, const ProgramWeights& chosen) {
  const auto seed = static_cast<uint64_t>(run_.seed);
  TrainedProgram model(program, list_layers(program));
  TrainTask task = model.task();
  if (teacher_) teacher_->attach(task, model, seed);
  score_epochs(task, model, rows_, options_.eval.batch_size);
  const GradualPruning pruning(chosen, options_, seed, task);
  task.best_from = pruning.complete_from(options_.training.options.epochs);
  const TrainOptions settings = train_options(options_.training, options_.eval.batch_size, run_.seed);
  report_.training = Training{
      timed(report_, "train", [&] { return mcompress::train(task, rows_.train, settings, checkpoint_); }),
      std::nullopt};
}

void Finetuning::finish() {
  write_learning_page(options_.training, options_.output, run_, report_);
  std::filesystem::remove(checkpoint_.path);
}

}  // namespace mcompress::cli
