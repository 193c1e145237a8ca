#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "mcompress/measure/accuracy.h"
#include "mcompress/measure/latency.h"
#include "mcompress/measure/perplexity.h"
#include "mcompress/methods/rounded_layer.h"
#include "mcompress/methods/trainer.h"
#include "mcompress/model/compressed_weight.h"
#include "mcompress/model/layer.h"
#include "mcompress/model/packed_verify.h"

namespace mcompress {

// A setting of the run with its type (monostate: not set), and where it came from: flag, environment,
// config, default.
struct Setting {
  using Value = std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<std::string>,
                             std::vector<double>>;
  std::string name;
  Value value;
  std::string source;
};

// A model on disk. What only its values tell is empty where they were not read.
struct Artifact {
  std::string path, format, sha256;
  uint64_t bytes = 0;
  int64_t parameters = 0;           // weights, scales left out
  std::optional<int64_t> nonzeros;  // of them
  double bits_per_weight() const {
    return parameters == 0 ? 0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters);
  }
};

// Numbers about one model; what was not measured is empty.
struct Metrics {
  std::optional<Accuracy> accuracy;
  std::optional<Latency> latency;
  std::optional<TextLoss> text;          // of a language model
  std::map<std::string, double> custom;  // from --eval-command

  std::optional<double> quality() const;  // top-1, or "top1" or "accuracy" of --eval-command
};

// A model that a language model was compared with.
struct Reference {
  std::string path;
  TextLoss text;
  Divergence divergence;
};

// A layer alone on the input that it is given, median seconds.
struct LayerTiming {
  double float_seconds = 0, integer_seconds = 0;
};

// What the outputs lose where one layer alone is quantized.
struct LayerDamage {
  double sqnr_db = 0;
  std::optional<double> top1;
};

// How a layer's weight was rounded in groups of channels.
struct GroupRounding {
  int bits = 4;
  int64_t group_size = -1;            // -1: all channels
  double loss = 0, rounded_loss = 0;  // squared error of a token's outputs; of rounding to nearest
  double damping = 0;
  int64_t dead_channels = 0;
  bool rounded = false;  // rounding to nearest lost less, and was taken
  double seconds = 0;
};

struct LayerRecord {
  std::string name, kind, decision, reason;  // reason: why it was kept
  uint64_t bytes_before = 0, bytes_after = 0;
  std::optional<double> sqnr_db = {}, max_error = {};
  std::optional<int64_t> parameters = {}, zeros = {};  // of a weight that was pruned or quantized
  std::optional<InputGrid> input = {};                 // of a layer that rounds its input to a fixed grid
  std::optional<LayerTiming> timing = {};
  std::optional<LayerDamage> damage = {};
  std::optional<GroupRounding> rounding = {};
};

// One trial of --tune: which layers stay in float, and what that gives.
struct Trial {
  std::vector<std::string> kept;
  double top1 = 0;
  bool passed = false;
};

// What static quantization and quantization-aware training tell beside the layers.
struct Quantization {
  int64_t folded_norms = 0;
  std::optional<double> folding_error;  // largest change of an output by folding, as a share of the largest
  std::vector<Trial> trials;
};

// What the inputs of layers were measured on, and what their weights take in groups.
struct Calibration {
  std::string path;
  int64_t samples = 0, length = 0;  // of text, windows and their tokens
  std::string compute;              // type of the activations
  int64_t weights = 0;              // of all layers that were rounded
  uint64_t bytes = 0;               // of their codes, scales and zero points
  int64_t blocks_kept = 0;          // that an earlier run had finished
  double bits_per_weight() const {
    return weights == 0 ? 0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
  }
};

// What pruning did to the weights that it chose.
struct Pruning {
  std::optional<double> target;  // the share that was asked for
  int64_t weights = 0, zeros = 0;
  std::optional<Metrics> at_once;  // pruned as much without training, where training followed
  double sparsity() const {
    return weights == 0 ? 0 : static_cast<double>(zeros) / static_cast<double>(weights);
  }
};

// The same model in several forms, so that a small file is seen beside what zstd makes of the dense one.
struct Storage {
  std::string store;  // the form of the output: dense, bitmask, bitmask+zstd
  uint64_t dense_bytes = 0, stored_bytes = 0, dense_zstd_bytes = 0, stored_zstd_bytes = 0;
};

// One trial of a sweep: the whole model, or one layer alone, at one sparsity.
struct SweepRow {
  std::string layer;                           // empty: all chosen layers
  double target = 0, sparsity = 0;             // asked for, and of the chosen weights of the whole model
  std::optional<Share> top1, agreement;        // with the model as it came
  uint64_t dense_bytes = 0, stored_bytes = 0;  // stored as a bitmask
};

// What a training run did. Scores are top-1 on the validation rows.
struct Training : TrainResult {
  std::optional<Metrics> fake_quantized;  // of quantization-aware training, before conversion
};

// Where a teacher's scores came from.
struct TeacherRecord {
  std::string path, sha256;
  bool live = false;  // it ran beside the student
  std::string cache;  // file of its scores, where it did not
  uint64_t cache_bytes = 0;
  bool reused = false;  // whether they were there already
};

// One seed of a distillation: top-1 of the student that learned from the teacher, and of the same one
// without.
struct DistillRun {
  int64_t seed = 0;
  std::optional<Share> top1, baseline;
};

// A mean over seeds with its deviation and 95 % interval (Student's t), which need two.
struct SeedMean {
  double mean = 0;
  std::optional<double> deviation, low, high;
};
SeedMean mean_of(const std::vector<double>& values);

struct Distillation {
  Artifact student;                 // as it came
  std::vector<std::string> copied;  // its parameters and buffers that were taken from the teacher
  std::string scored_on;            // "eval" or "validation"; empty where nothing scores
  std::vector<DistillRun> runs;     // the first is the one that was written
  std::vector<EpochRecord> baseline_epochs;

  std::optional<SeedMean> top1() const, baseline() const, gain() const;  // empty without such runs
};

struct Gate {
  std::string name;
  double limit, value;
  bool passed;
};

struct Phase {
  std::string name;
  double seconds;
};

// Everything a run found out: the one place where numbers live. A command fills in what it knows.
struct Report {
  std::string command;
  std::vector<Setting> settings;
  std::optional<Artifact> input, output;
  std::optional<uint64_t> predicted_bytes;
  std::optional<Metrics> before, after;
  std::optional<Reference> reference;
  std::vector<LayerRecord> layers;
  std::optional<Quantization> quantization;
  std::optional<Calibration> calibration;
  std::vector<Fold> folds;
  std::vector<Finding> findings;  // of verify
  std::optional<Training> training;
  std::optional<TeacherRecord> teacher;
  std::optional<Distillation> distillation;
  std::optional<Pruning> pruning;
  std::optional<Storage> storage;
  std::vector<SweepRow> sweep;
  std::vector<Gate> gates;
  std::vector<std::string> warnings;
  std::vector<Phase> phases;
  int64_t seed = 0;
  int threads = 0, exit_code = 0;

  double size_ratio() const;  // input bytes by output bytes
};

// The report as schema_version 1 of configs/report.schema.json. Numbers that are not known, NaN or
// infinite are null.
nlohmann::ordered_json to_json(const Report& report);

// An HTML page with the learning curves of the run, as SVG, and a table of its epochs.
std::string learning_page(const Report& report, const std::string& model);

// The short table of before and after for people.
std::string to_table(const Report& report);

// What a run must hold; what is empty is not checked.
struct GateOptions {
  std::optional<double> max_accuracy_drop;     // fraction: 0.005 is half a point
  std::string drop = "absolute";               // "relative": a fraction of the accuracy before
  std::optional<double> max_perplexity_ratio;  // after by before
  std::optional<double> min_size_ratio, max_latency_ratio, min_agreement;
};

// Adds the result of each gate to the report; false where one failed. Throws Error(2) where a gate
// has nothing to judge.
bool check_gates(const GateOptions& options, Report& report);

}  // namespace mcompress
