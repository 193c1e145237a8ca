#include "prune.h"

#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "mcompress/base/output.h"
#include "mcompress/base/pattern.h"

namespace mcompress::cli {

namespace {

PruneOptions method_options(const PruneCommand& options, uint64_t seed) {
  static const std::map<std::string, Criterion> kCriteria = {{"l1", Criterion::kL1},
                                                             {"l2", Criterion::kL2},
                                                             {"random", Criterion::kRandom},
                                                             {"wanda", Criterion::kWanda},
                                                             {"activation", Criterion::kActivation}};
  return {kCriteria.at(options.criterion), parse_pattern(options.pattern), seed};
}

// A share of its own for the layers that an expression matches.
struct LayerShare {
  Pattern layers;
  double share;
};

std::vector<LayerShare> read_layer_shares(const PruneCommand& options) {
  std::vector<LayerShare> shares;
  for (const std::string& text : options.layer_sparsity) {
    const size_t equals = text.rfind('=');
    if (equals == std::string::npos || equals == 0)
      throw error(Exit::kUsage, "--layer-sparsity '{}' is not REGEX=SHARE, such as 'fc.*=0.5'", text);
    shares.push_back({Pattern(text.substr(0, equals)), fraction_of(text.substr(equals + 1))});
  }
  return shares;
}

// A sweep measures and writes no model.
void check_sweep(const PruneCommand& options, const RunOptions& run) {
  if (options.sweep.empty()) {
    if (options.per_layer) throw error(Exit::kUsage, "--per-layer goes with --sweep");
    if (!options.training.html.empty() && !options.finetune)
      throw error(Exit::kUsage, "--html goes with --sweep or --finetune");
    return;
  }
  read_sweep(options.sweep);
  const GateOptions& gates = options.gates;
  if (!options.output.empty() || options.dry_run || gates.max_accuracy_drop || gates.min_size_ratio ||
      gates.max_latency_ratio || gates.min_agreement || !options.eval.command.empty()) {
    throw error(
        Exit::kUsage,
        "--sweep tries sparsities and writes no model; leave out -o, --dry-run, --eval-command and gates");
  }
  if (options.sparsity || options.count || !options.layer_sparsity.empty() ||
      parse_pattern(options.pattern).kind == SparsityPattern::Kind::kGroups) {
    throw error(
        Exit::kUsage,
        "--sweep names the sparsities; leave out --sparsity, --count, --layer-sparsity and --pattern N:M");
  }
  if (options.store != "dense")
    throw error(Exit::kUsage, "--sweep shows the bytes of a bitmask; leave out --store");
  if (!options.training.html.empty())
    check_output(options.training.html, OutputKind::kFile, run.force, run.inputs);
}

void check_options(const PruneCommand& options, const RunOptions& run) {
  check_sweep(options, run);
  if (options.sweep.empty()) check_compress_options(options, "prune");
  check_finetune(options);
  const SparsityPattern pattern = parse_pattern(options.pattern);
  read_layer_shares(options);
  const bool groups = pattern.kind == SparsityPattern::Kind::kGroups;
  if (groups && (options.sparsity || options.count || !options.layer_sparsity.empty())) {
    throw error(Exit::kUsage,
                "--pattern {0} zeroes {1} of every {2} weights, so --sparsity, --count and --layer-sparsity "
                "have no place",
                options.pattern, pattern.group - pattern.kept, pattern.group);
  }
  if (options.sweep.empty() && !groups && !options.sparsity && !options.count &&
      options.layer_sparsity.empty())
    throw error(Exit::kUsage, "prune needs --sparsity, --count, --layer-sparsity or --pattern N:M");
  if (options.needs_inputs() && options.calib_data.empty())
    throw error(Exit::kUsage, "--criterion {} needs --calib-data", options.criterion);
  if (!options.needs_inputs() && !options.calib_data.empty()) {
    throw error(Exit::kUsage, "--calib-data goes with --criterion wanda or activation, not {}",
                options.criterion);
  }
  if (options.criterion == "wanda" && options.scope == "global")
    throw error(Exit::kUsage,
                "--criterion wanda compares inside each row; use activation with --scope global");
  if (options.scope == "global" && pattern.kind != SparsityPattern::Kind::kUnstructured)
    throw error(Exit::kUsage, "--scope global goes with --pattern unstructured only");
}

void prune(const PruneCommand& options, const RunOptions& run, Report& report) {
  check_options(options, run);
  const ModelFormat format = detect_model(options.model);
  check_for_format(options, format);
  const OutputKind kind = format == ModelFormat::kHuggingFace ? OutputKind::kFolder : OutputKind::kFile;
  if (!options.output.empty()) check_output(options.output, kind, run.force, run.inputs);
  if (format == ModelFormat::kTorchScript) {
    prune_program(options, run, report);
  } else if (options.finetune) {
    throw error(Exit::kUsage,
                "'{}' holds weights without a program, which --finetune must run; pass TorchScript",
                options.model);
  } else {
    prune_checkpoint(options, format, run, report);
  }
}

}  // namespace

std::string obstacle_of(LayerKind kind, const PruneCommand& options) {
  const std::string& types = options.types;
  if (kind == LayerKind::kEmbedding && options.needs_inputs())
    return fmt::format("an embedding has no inputs for --criterion {}", options.criterion);
  const bool convolution = is_convolution(kind);
  const std::string type = convolution ? "conv" : name_of(kind);
  if (types == "all" || types.find(type) != std::string::npos) return "";
  return fmt::format("--types {} leaves it out", types);
}

std::vector<RowMask> choose_masks(const std::vector<PrunableWeight>& weights, const PruneCommand& options,
                                  uint64_t seed, double part) {
  const auto scaled = [part](const Amount& amount) {
    if (!amount.count) return Amount{amount.share * part, {}};
    return Amount{0, std::llround(static_cast<double>(*amount.count) * part)};
  };
  const PruneOptions method = method_options(options, seed);
  const std::vector<LayerShare> shares = read_layer_shares(options);
  std::vector<bool> used(shares.size(), false);
  std::vector<RowMask> masks(weights.size());
  std::vector<PrunableWeight> together;
  std::vector<size_t> indices;
  for (size_t i = 0; i < weights.size(); ++i) {
    Amount amount{options.sparsity.value_or(0), options.count};
    bool alone = options.scope == "layer";
    for (size_t j = 0; j < shares.size(); ++j) {
      if (!shares[j].layers.matches(weights[i].name)) continue;
      amount = {shares[j].share, {}};
      used[j] = alone = true;
    }
    if (alone) {
      masks[i] = choose_zeros({weights[i]}, scaled(amount), method).front();
    } else {
      together.push_back(weights[i]);
      indices.push_back(i);
    }
  }
  const auto unused = std::find(used.begin(), used.end(), false);
  if (unused != used.end()) {
    throw error(Exit::kUsage, "--layer-sparsity '{}' matches no layer that is pruned",
                options.layer_sparsity[static_cast<size_t>(unused - used.begin())]);
  }
  if (together.empty()) return masks;
  const auto pooled = choose_zeros(together, scaled({options.sparsity.value_or(0), options.count}), method);
  for (size_t i = 0; i < pooled.size(); ++i) masks[indices[i]] = pooled[i];
  return masks;
}

void sum_up(const PruneCommand& options, const std::vector<Decision>& plan, Report& report) {
  Pruning pruning{options.sparsity, 0, 0, {}};
  std::set<WeightIdentity> seen;  // a weight that layers share counts once
  for (size_t i = 0; i < plan.size(); ++i) {
    if (!plan[i].reason.empty() || !seen.insert(plan[i].identity).second) continue;
    pruning.weights += *report.layers[i].parameters;
    pruning.zeros += *report.layers[i].zeros;
  }
  report.pruning = pruning;
}

Command prune_command() {
  auto options = std::make_shared<PruneCommand>();
  const auto add_options = [options](CLI::App& app) {
    add_compress_options(app, *options, "What to write, in the format of the model; a folder for a folder");
    app.add_option("--sweep", options->sweep,
                   "FROM:TO:STEP, such as 0.1:0.9:0.1: measure these sparsities and write no model");
    app.add_flag("--per-layer", options->per_layer, "With --sweep: also each layer alone");
    add_fraction(app, "--sparsity,--amount", options->sparsity,
                 "Share of the weights that become zero, 0.3 or 30%; of the channels with channels-zero");
    add_count(app, "--count", options->count,
              "Number of weights or channels that become zero: in each layer, or in all with --scope global")
        ->excludes("--sparsity");
    app.add_option("--types", options->types, "Kinds of layers")
        ->check(CLI::IsMember(
            {"linear", "conv", "embedding", "linear,conv", "linear,embedding", "conv,embedding", "all"}));
    app.add_option("--layer-sparsity", options->layer_sparsity,
                   "REGEX=SHARE: another share for the layers that match; repeatable, the last one holds")
        ->allow_extra_args(false);
    app.add_option("--scope", options->scope,
                   "layer: the share holds in each layer; global: in all of them together")
        ->check(CLI::IsMember({"layer", "global"}));
    app.add_option(
           "--criterion", options->criterion,
           "What is pruned first. l1: small magnitudes; l2: the same, channels by their Euclidean "
           "norm; random: by --seed; wanda: magnitude times the norm of the input, in each output row; "
           "activation: the same in the whole layer")
        ->check(CLI::IsMember({"l1", "l2", "random", "wanda", "activation"}));
    app.add_option("--calib-data,--dataset", options->calib_data,
                   "Inputs for wanda and activation: data as for --eval-data, whose labels are not read, or "
                   "one .npy; of a "
                   "folder the train split");
    add_nsamples(app, options->nsamples);
    app.add_option("--pattern", options->pattern,
                   "unstructured: any weights; N:M: of every M neighbours N stay, such as 2:4; "
                   "channels-zero: whole output channels");
    app.add_option(
           "--store", options->store,
           "dense: as it was; bitmask: a bit a weight and the values that are not zero; bitmask+zstd: "
           "that in a zstd frame; auto: the smallest; 'mcompress expand' gives the dense file back")
        ->check(CLI::IsMember({"dense", "bitmask", "bitmask+zstd", "auto"}));
    app.add_flag("--finetune", options->finetune,
                 "Train while weights are pruned, and after; zeros stay zeros")
        ->group("Training");
    app.add_option("--schedule", options->schedule,
                   "With --finetune: one-shot: all is pruned before the training; linear, cubic: in --steps, "
                   "over its first two thirds")
        ->check(CLI::IsMember({"one-shot", "linear", "cubic"}))
        ->group("Training");
    app.add_option("--steps", options->steps,
                   "With --schedule linear or cubic: times that more is pruned; default 10")
        ->check(CLI::Range(2, 100'000))
        ->group("Training");
    add_train_options(app, options->training, 0.01);
    app.add_option("--teacher", options->tutoring.teacher,
                   "With --finetune: a model to learn from, such as the dense one's larger sister")
        ->group("Distillation");
    add_teacher_options(app, options->tutoring);
  };
  const auto run = [options](const RunOptions& r, Report& report) { prune(*options, r, report); };
  return {"prune", "Set the least important weights to zero", add_options, run};
}

}  // namespace mcompress::cli
