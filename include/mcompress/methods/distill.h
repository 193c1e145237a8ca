#pragma once

#include <string>
#include <vector>

#include "mcompress/methods/trained_program.h"
#include "mcompress/methods/trainer.h"

namespace mcompress {

// What is compared between teacher and student. With p and q the softmax of their scores at temperature T:
// kKl: T^2 KL(p || q) (Hinton et al., arXiv:1503.02531); kReverseKl: T^2 KL(q || p); kJsd: T^2 times the mean
// of KL(p || m) and KL(q || m), m = (p + q) / 2; kMseLogits: the mean square of the scores' differences,
// without a temperature. T^2 keeps the size of the gradients as T grows. All are means over the batch, so
// that KL is that of torch's "batchmean"; kMseLogits is a mean over classes too.
enum class DistillLoss { kKl, kReverseKl, kJsd, kMseLogits };

struct DistillOptions {
  DistillLoss loss = DistillLoss::kKl;
  double temperature = 4;
  double alpha = 0.5;  // share of the teacher in the loss; the rest is cross entropy with the labels
  double label_smoothing = 0;
};

// A teacher's scores for a batch.
struct TeacherBatch {
  at::Tensor scores;   // float32 [n, classes], or [n, k] for the k highest
  at::Tensor classes;  // int64 [n, k]: theirs; undefined for all classes
};

// The part of the loss that compares `scores` [n, classes] of the student with the teacher's. Of the k
// highest, p is the softmax of these alone and KL sums over them; the other losses need all classes.
at::Tensor soft_loss(const at::Tensor& scores, const TeacherBatch& teacher, const DistillOptions& options);

// alpha * soft_loss + (1 - alpha) * cross entropy. `labels` may be undefined where alpha is 1. Throws
// Error(65) where the numbers of classes differ.
at::Tensor distill_loss(const at::Tensor& scores, const TeacherBatch& teacher, const at::Tensor& labels,
                        const DistillOptions& options);

// What is compared of two modules' outputs: [n, channels], [n, positions, channels] or [n, channels, height,
// width]. kMse: the mean square of the difference, after a learned linear projection of the student's where
// widths differ (FitNets, arXiv:1412.6550). kAttention: the same of the maps sum_c f_c^2 over channels, at
// unit length for each sample (arXiv:1612.03928). Images of two sizes are averaged down to the smaller one.
enum class HintKind { kMse, kAttention };
struct HintOptions {
  HintKind kind = HintKind::kMse;
  std::vector<std::string> teacher, student;  // names of modules, by hint
  double weight = 1;                          // of their sum in the loss
};

// The losses of all hints.
class Hints {
 public:
  // Learns the widths from one batch of outputs, by hint. Projections start from `seed`. Throws Error(65)
  // naming a pair that cannot be compared.
  Hints(const HintOptions& options, const std::vector<at::Tensor>& teacher,
        const std::vector<at::Tensor>& student, uint64_t seed);

  // The weighted sum over all hints.
  at::Tensor loss(const std::vector<at::Tensor>& teacher, const std::vector<at::Tensor>& student) const;

  // The projections, which are trained with the student.
  std::vector<Trainable> parameters() const;

 private:
  HintOptions options_;
  std::vector<at::Tensor> projections_;  // [teacher's width, student's width]; undefined where none is needed
};

}  // namespace mcompress
