#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "mcompress/data/augment.h"
#include "mcompress/data/dataset.h"
#include "mcompress/methods/run_checkpoint.h"

namespace mcompress {

enum class OptimizerKind { kSgd, kAdamW };
enum class Schedule { kConstant, kCosine, kStep };

struct TrainOptions {
  OptimizerKind optimizer = OptimizerKind::kSgd;
  double rate = 0.0003, momentum = 0.9, weight_decay = 0;
  Schedule schedule = Schedule::kCosine;  // kCosine: down to 0; kStep: times step_factor every step_epochs
  int64_t step_epochs = 10;
  double step_factor = 0.1;
  int64_t warmup_steps = 0;  // the rate grows from 0
  double clip_norm = 0;      // most that the Euclidean norm of all gradients may be; 0: any
  double label_smoothing = 0;
  int64_t epochs = 10, batch_size = 64;
  AugmentOptions augment = {};
  int64_t patience = 0;  // epochs without a better score after which training ends; 0: never
  uint64_t seed = 0;
  std::string label = {};  // before what progress says
};

// The learning rate of a step, of `steps` an epoch.
double rate_at(const TrainOptions& options, int64_t step, int64_t steps);

struct Trainable {
  std::string name;
  at::Tensor value;       // a leaf that requires gradients; changed in place
  bool decays = true;     // whether weight decay holds for it
  at::Tensor zeros = {};  // bool, of the value's shape: elements that stay zero; undefined: none
};

// What a loss sees of a step.
struct TrainBatch {
  at::Tensor places;  // int64 [n]: rows of the data's inputs
  at::Tensor inputs;  // as the model is given them, unless it changes them
  at::Tensor labels;  // int64 [n]; undefined where the data has none
};

// Mean cross entropy, nats. Throws Error(65) where `scores` [n, classes] have no class for a label.
at::Tensor cross_entropy(const at::Tensor& scores, const at::Tensor& labels, double label_smoothing);

// What is trained, and how it computes.
struct TrainTask {
  std::vector<Trainable> parameters;
  std::vector<std::pair<std::string, at::Tensor>> buffers;      // what the forward pass changes in place
  std::function<at::Tensor(const at::Tensor& inputs)> forward;  // class scores [n, classes], with gradients
  // Mean over the batch; empty: cross entropy.
  std::function<at::Tensor(const at::Tensor& scores, const TrainBatch& batch)> loss;
  std::function<void(int64_t epoch)> begin_epoch;               // may be empty
  std::function<void(int64_t step, int64_t steps)> begin_step;  // of the whole run; may be empty
  std::function<double()> score;  // after each epoch, higher is better; may be empty
  int64_t best_from = 0;          // the first epoch that may be the best
  std::function<std::string(const at::Tensor& inputs)> find_non_finite;  // the first layer that is not finite
};

struct EpochRecord {
  int64_t epoch = 0;          // from 1; 0: before training, where there is a score
  double loss = 0, rate = 0;  // mean loss, nats, NaN for epoch 0; rate of the last step
  std::optional<double> score;
  double seconds = 0;
};

struct TrainResult {
  std::vector<EpochRecord> epochs;
  int64_t steps = 0, best_epoch = 0;
  std::string stopped;  // why training ended before the last epoch; empty where it did not
  std::optional<int64_t> resumed_at;
};

// Throws what training would at its first step: Error(65) where the task has no parameters, or where what it
// makes of `inputs` is no finite [n, classes] that depends on them.
void check_trainable(const TrainTask& task, const at::Tensor& inputs);

// Trains by mini-batches that are shuffled by the seed, and leaves the parameters and
// buffers of the epoch with the best score, epoch 0 among them, or of the last one without a score. Rows that
// do not fill a batch are left out of an epoch. The checkpoint, a safetensors file with parameters, buffers,
// optimizer state, position and the best epoch so far, is written after each epoch, each minute, and at a
// signal; a resumed run ends as an unbroken one does, bit for bit. Throws Error(75) where a signal stops it,
// Error(65) where the loss is not finite, naming step and layer.
TrainResult train(TrainTask& task, const Dataset& data, const TrainOptions& options,
                  const CheckpointOptions& checkpoint);

}  // namespace mcompress
