#include "prune.h"

#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <set>

#include "mcompress/base/output.h"
#include "mcompress/base/pattern.h"
#include "mcompress/formats/zstd.h"

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
    if (options.per_layer || !options.html.empty())
      throw error(Exit::kUsage, "--per-layer and --html go with --sweep");
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
  if (!options.html.empty()) check_output(options.html, OutputKind::kFile, run.force, run.inputs);
}

void check_options(const PruneCommand& options, const RunOptions& run) {
  check_sweep(options, run);
  if (options.sweep.empty()) check_compress_options(options, "prune");
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
  const OutputKind kind = format == ModelFormat::kHuggingFace ? OutputKind::kFolder : OutputKind::kFile;
  if (!options.output.empty()) check_output(options.output, kind, run.force, run.inputs);
  if (format == ModelFormat::kTorchScript) {
    prune_program(options, run, report);
  } else {
    prune_checkpoint(options, format, run, report);
  }
}

}  // namespace

std::string obstacle_of(LayerKind kind, const PruneCommand& options) {
  const std::string& types = options.types;
  if (kind == LayerKind::kEmbedding && options.needs_inputs())
    return fmt::format("an embedding has no inputs for --criterion {}", options.criterion);
  const bool convolution = kind == LayerKind::kConv1d || kind == LayerKind::kConv2d;
  const std::string type = convolution ? "conv" : name_of(kind);
  if (types == "all" || types.find(type) != std::string::npos) return "";
  return fmt::format("--types {} leaves it out", types);
}

std::vector<double> read_sweep(const std::string& text) {
  std::vector<double> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(':', begin), text.size());
    parts.push_back(fraction_of(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  constexpr double kMaxSteps = 1000, kSlack = 1e-9, kDigits = 1e12;  // 0.1 + 2 * 0.1 is 0.3
  const double steps =
      parts.size() != 3 || parts[2] <= 0 ? -1 : std::floor((parts[1] - parts[0]) / parts[2] + kSlack);
  if (!(steps >= 0 && steps <= kMaxSteps))
    throw error(Exit::kUsage, "--sweep '{}' is not FROM:TO:STEP, such as 0.1:0.9:0.1", text);
  std::vector<double> sparsities;
  for (int i = 0; i <= static_cast<int>(steps); ++i)
    sparsities.push_back(std::min(1.0, std::round((parts[0] + i * parts[2]) * kDigits) / kDigits));
  return sparsities;
}

namespace {

// The bytes from the first element of a weight to the end of its last.
struct Extent {
  const std::byte *begin, *end;

  explicit Extent(const Decision& decision)
      : begin(static_cast<const std::byte*>(decision.identity.data)), end(begin) {
    const std::vector<int64_t>&sizes = decision.identity.sizes, &strides = decision.identity.strides;
    const auto elements = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
    if (elements == 0) return;
    int64_t last = strides.empty() ? elements - 1 : 0;
    for (size_t i = 0; i < strides.size(); ++i) last += (sizes[i] - 1) * strides[i];
    end += (last + 1) * (static_cast<int64_t>(decision.bytes_before) / elements);
  }
  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

}  // namespace

void keep_overlapping(std::vector<Decision>& plan) {
  for (size_t i = 0; i < plan.size(); ++i) {
    if (!plan[i].reason.empty()) continue;
    for (size_t j = 0; j < plan.size(); ++j) {
      const bool kept = !plan[j].reason.empty();
      if ((j > i && !kept) || plan[i].identity == plan[j].identity ||
          !Extent(plan[i]).overlaps(Extent(plan[j])))
        continue;
      plan[i].reason =
          fmt::format("lies over the weight of '{}', which is {}", plan[j].name, kept ? "kept" : "pruned");
      break;
    }
  }
}

std::vector<RowMask> choose_masks(const std::vector<PrunableWeight>& weights, const PruneCommand& options,
                                  uint64_t seed) {
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
      masks[i] = choose_zeros({weights[i]}, amount, method).front();
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
  const auto pooled = choose_zeros(together, {options.sparsity.value_or(0), options.count}, method);
  for (size_t i = 0; i < pooled.size(); ++i) masks[indices[i]] = pooled[i];
  return masks;
}

void check_auto(const PruneCommand& options, const std::string& obstacle, Report& report) {
  const std::string text = fmt::format("'{}' cannot be stored as a bitmask: {}", options.model, obstacle);
  if (options.store != "auto") throw bad_data("{}; use --store dense", text);
  report.warnings.push_back(text);
}

uint64_t bytes_to_write(const PruneCommand& options, uint64_t dense_bytes) {
  return options.store == "dense" ? dense_bytes : 3 * dense_bytes;
}

void describe_dense(const std::string& path, const RunOptions& run, Report& report) {
  if (run.report.empty()) return;
  const MappedFile file(path);
  const uint64_t packed = timed(report, "pack", [&] { return packed_zstd_bytes(file.bytes()); });
  report.storage = Storage{"dense", file.bytes().size(), file.bytes().size(), packed, packed};
}

std::string write_stored(const PruneCommand& options, const OutputFile& dense, const OutputFile& sparse,
                         OutputFile& file, Report& report) {
  const MappedFile dense_map(dense.temporary()), sparse_map(sparse.temporary());
  const Bytes dense_bytes = dense_map.bytes(), sparse_bytes = sparse_map.bytes();
  return timed(report, "pack", [&] {
    const uint64_t dense_zstd = packed_zstd_bytes(dense_bytes);
    dense_map.drop(dense_bytes);
    std::string store = options.store;
    if (store == "bitmask+zstd") {
      pack_zstd(sparse_bytes, [&file](Bytes bytes) { file.write(bytes); });
      report.storage = Storage{store, dense_bytes.size(), file.size(), dense_zstd, file.size()};
      return store;
    }
    const uint64_t sparse_zstd = packed_zstd_bytes(sparse_bytes);
    if (store == "auto") {
      const uint64_t least = std::min({dense_bytes.size(), sparse_bytes.size(), sparse_zstd});
      store = least == sparse_zstd ? "bitmask+zstd" : least == sparse_bytes.size() ? "bitmask" : "dense";
    }
    if (store == "bitmask+zstd") {
      pack_zstd(sparse_bytes, [&file](Bytes bytes) { file.write(bytes); });
    } else {
      file.write(store == "bitmask" ? sparse_bytes : dense_bytes);
    }
    report.storage = Storage{store, dense_bytes.size(), file.size(), dense_zstd,
                             store == "dense" ? dense_zstd : sparse_zstd};
    return store;
  });
}

void sum_up(const PruneCommand& options, const std::vector<Decision>& plan, Report& report) {
  Pruning pruning{options.sparsity, 0, 0};
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
    app.add_option("--html", options->html, "With --sweep: a page with the curves");
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
    app.add_option("--calib-data", options->calib_data,
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
  };
  const auto run = [options](const RunOptions& r, Report& report) { prune(*options, r, report); };
  return {"prune", "Set the least important weights to zero", add_options, run};
}

}  // namespace mcompress::cli
