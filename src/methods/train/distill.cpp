#include "mcompress/methods/distill.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/ranges.h>

#include "layer_gradient.h"
#include "mcompress/base/error.h"

namespace mcompress {

namespace {

// sum_c p (log p - log q), a row each, from logarithms.
at::Tensor divergence(const at::Tensor& log_p, const at::Tensor& log_q) {
  return (log_p.exp() * (log_p - log_q)).sum(1);
}

at::Tensor jensen_shannon(const at::Tensor& log_p, const at::Tensor& log_q) {
  const at::Tensor log_m = at::logaddexp(log_p, log_q) - std::log(2.0);
  return (divergence(log_p, log_m) + divergence(log_q, log_m)) / 2;
}

}  // namespace

at::Tensor soft_loss(const at::Tensor& scores, const TeacherBatch& teacher, const DistillOptions& options) {
  if (options.loss == DistillLoss::kMseLogits) return (scores - teacher.scores).square().mean(1).mean();
  const double t = options.temperature;
  const at::Tensor log_p = (teacher.scores / t).log_softmax(1);
  at::Tensor log_q = (scores / t).log_softmax(1);
  if (teacher.classes.defined()) log_q = log_q.gather(1, teacher.classes);
  const auto rows = [&] {
    switch (options.loss) {
      case DistillLoss::kReverseKl: return divergence(log_q, log_p);
      case DistillLoss::kJsd: return jensen_shannon(log_p, log_q);
      default: return divergence(log_p, log_q);
    }
  };
  return rows().mean() * (t * t);
}

at::Tensor distill_loss(const at::Tensor& scores, const TeacherBatch& teacher, const at::Tensor& labels,
                        const DistillOptions& options) {
  if (!teacher.classes.defined() && teacher.scores.size(1) != scores.size(1)) {
    throw bad_data("the teacher tells {} classes apart and the student {}; they must be the same",
                   teacher.scores.size(1), scores.size(1));
  }
  if (options.alpha == 1) return soft_loss(scores, teacher, options);
  const at::Tensor hard = cross_entropy(scores, labels, options.label_smoothing);
  if (options.alpha == 0) return hard;
  return options.alpha * soft_loss(scores, teacher, options) + (1 - options.alpha) * hard;
}

namespace {

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes(), ", "));
}

// Where channels lie: images [n, channels, height, width] have them second, everything else, such as
// [n, positions, channels], last.
int64_t channel_dim(const at::Tensor& features) {
  constexpr int64_t kImage = 4;
  return features.dim() == kImage ? 1 : features.dim() - 1;
}

// Both at the smaller of their two sizes, where they are images.
std::pair<at::Tensor, at::Tensor> same_size(const at::Tensor& a, const at::Tensor& b) {
  constexpr int64_t kImage = 4;
  if (a.dim() != kImage || a.sizes().slice(2) == b.sizes().slice(2)) return {a, b};
  const std::vector<int64_t> size = {std::min(a.size(2), b.size(2)), std::min(a.size(3), b.size(3))};
  return {at::adaptive_avg_pool2d(a, size), at::adaptive_avg_pool2d(b, size)};
}

// [n, positions], of unit length.
at::Tensor attention_map(const at::Tensor& features) {
  const at::Tensor map = features.square().mean(channel_dim(features)).flatten(1);
  return map / map.norm(2, 1, true).clamp_min(1e-12);
}

// Sums over each sample first, so that no sum is split by the number of threads.
at::Tensor mean_square(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).square().flatten(1).mean(1).mean();
}

at::Tensor project(const at::Tensor& features, const at::Tensor& projection) {
  if (!projection.defined()) return features;
  const Layer linear{"projection", LayerKind::kLinear, projection, {}, {}, ""};
  const int64_t channels = channel_dim(features);
  return apply_layer_for_training(linear, features.movedim(channels, -1), projection, {})
      .movedim(-1, channels);
}

}  // namespace

Hints::Hints(const HintOptions& options, const std::vector<at::Tensor>& teacher,
             const std::vector<at::Tensor>& student, uint64_t seed)
    : options_(options) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (size_t i = 0; i < teacher.size(); ++i) {
    const at::Tensor &t = teacher[i], &s = student[i];
    for (const auto& [which, name, output] :
         {std::tuple("teacher", options.teacher[i], t), std::tuple("student", options.student[i], s)}) {
      if (!output.defined()) throw bad_data("the {}'s module '{}' is not used", which, name);
    }
    const auto refuse = [&](const std::string& why) {
      throw bad_data("--hint {}={}: the teacher's output {} and the student's {} cannot be compared: {}",
                     options.teacher[i], options.student[i], shape_text(t), shape_text(s), why);
    };
    const int64_t least = options.kind == HintKind::kMse ? 2 : 3;
    if (t.dim() != s.dim() || t.dim() < least || t.size(0) != s.size(0))
      refuse(fmt::format("they must have the same number of dimensions, at least {}, and the same batch",
                         least));
    if (!t.is_floating_point() || !s.is_floating_point()) refuse("they must be floats");
    if (t.dim() == 3 && t.size(1) != s.size(1)) refuse("their second dimensions differ");
    if (t.dim() > 4) refuse("more than four dimensions are not known");
    at::Tensor projection;
    const int64_t wide = t.size(channel_dim(t)), narrow = s.size(channel_dim(s));
    if (options.kind == HintKind::kMse && wide != narrow) {
      const double bound = 1 / std::sqrt(static_cast<double>(narrow));
      projection = at::empty({wide, narrow}, at::kFloat).uniform_(-bound, bound, random);
      projection.requires_grad_(true);
    }
    projections_.push_back(projection);
  }
}

at::Tensor Hints::loss(const std::vector<at::Tensor>& teacher, const std::vector<at::Tensor>& student) const {
  at::Tensor sum;
  for (size_t i = 0; i < projections_.size(); ++i) {
    const auto [t, s] = same_size(teacher[i], student[i]);
    const at::Tensor one = options_.kind == HintKind::kMse ? mean_square(project(s, projections_[i]), t)
                                                           : mean_square(attention_map(s), attention_map(t));
    sum = sum.defined() ? sum + one : one;
  }
  return sum * options_.weight;
}

std::vector<Trainable> Hints::parameters() const {
  std::vector<Trainable> parameters;
  for (size_t i = 0; i < projections_.size(); ++i) {
    if (projections_[i].defined())
      parameters.push_back({fmt::format("hint.{}.projection", i), projections_[i]});
  }
  return parameters;
}

}  // namespace mcompress
