#include <map>
#include <optional>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/base/pattern.h"
#include "mcompress/base/progress.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/dynamic.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/program.h"
#include "run.h"

namespace mcompress::cli {

namespace {

using nlohmann::ordered_json;

struct Arguments {
  std::string model, output, mode = "dynamic", runtime = "int8";
  std::vector<std::string> only, ignore;
  bool embeddings = false, dry_run = false;
  double max_accuracy_drop = -1, min_size_ratio = 0;
  DataArguments data;
  RunArguments run;
};

// What the plan needs to know of a layer, and what it decides: an empty reason means quantize.
struct Decision {
  std::string name;
  LayerKind kind;
  std::string reason;  // starts as the layer's own obstacle
};

bool any_matches(const std::vector<Pattern>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const Pattern& p) { return p.matches(name); });
}

std::vector<Pattern> read_patterns(const std::vector<std::string>& expressions,
                                   const std::vector<Decision>& plan, const char* option) {
  std::vector<Pattern> patterns;
  for (const std::string& expression : expressions) {
    patterns.emplace_back(expression);
    const bool used = std::any_of(plan.begin(), plan.end(),
                                  [&](const Decision& d) { return patterns.back().matches(d.name); });
    if (!used) {
      throw error(Exit::kUsage, "{} '{}' matches no layer; 'mcompress inspect' lists their names", option,
                  expression);
    }
  }
  return patterns;
}

// Fills in the reasons. Throws where nothing is left to quantize.
void decide(std::vector<Decision>& plan, const Arguments& arguments) {
  const auto only = read_patterns(arguments.only, plan, "--layer");
  const auto ignore = read_patterns(arguments.ignore, plan, "--ignore");
  for (Decision& decision : plan) {
    const LayerKind kind = decision.kind;
    if (kind == LayerKind::kConv1d || kind == LayerKind::kConv2d) {
      decision.reason = "dynamic mode treats no convolutions";
    } else if (kind == LayerKind::kEmbedding && !arguments.embeddings) {
      decision.reason = "embeddings are left alone without --embeddings";
    }
    if (any_matches(ignore, decision.name)) decision.reason = "matched by --ignore";
    if (!only.empty() && !any_matches(only, decision.name)) decision.reason = "not matched by --layer";
  }
  const bool any = std::any_of(plan.begin(), plan.end(), [](const Decision& d) { return d.reason.empty(); });
  if (!any) throw bad_data("'{}' has no layer that dynamic mode can quantize", arguments.model);
}

void print_plan(const std::vector<Decision>& plan) {
  for (const Decision& decision : plan) {
    fmt::print("{:<40} {}\n", decision.name, decision.reason.empty() ? "int8" : "keep: " + decision.reason);
  }
}

ordered_json describe_decision(const Decision& decision, uint64_t bytes_before, uint64_t bytes_after) {
  const bool quantized = decision.reason.empty();
  return {{"name", decision.name},
          {"kind", name_of(decision.kind)},
          {"decision", quantized ? "int8" : "keep"},
          {"reason", quantized ? ordered_json(nullptr) : ordered_json(decision.reason)},
          {"bytes_before", bytes_before},
          {"bytes_after", bytes_after}};
}

void check_finite(const Layer& layer) {
  const int64_t non_finite = layer.weight.numel() - layer.weight.isfinite().sum().item<int64_t>();
  if (non_finite == 0) return;
  throw bad_data(
      "weight of layer '{}' holds {} values that are NaN or infinite; repair the model or pass "
      "--ignore '^{}$'",
      layer.name, non_finite, layer.name);
}

ordered_json quantize_layers(const std::vector<Layer>& layers, const std::vector<Decision>& plan,
                             Runtime runtime, std::map<std::string, Int8Channel>& weights) {
  ordered_json rows = ordered_json::array();
  Progress progress("quantize", static_cast<int64_t>(plan.size()));
  for (size_t i = 0; i < plan.size(); ++i) {
    const Layer& layer = layers[i];
    progress.step();
    if (!plan[i].reason.empty()) {
      rows.push_back(describe_decision(plan[i], layer.weight.nbytes(), layer.weight.nbytes()));
      continue;
    }
    const bool pairs = runtime == Runtime::kInt8 && layer.kind == LayerKind::kLinear;
    const Int8Channel int8 = quantize_rows(layer.weight, pairs ? Int8Grid::kPair : Int8Grid::kRow);
    const QuantizationError error = error_of(layer.weight, int8);
    ordered_json row =
        describe_decision(plan[i], layer.weight.nbytes(), int8.codes.nbytes() + int8.scale.nbytes());
    row.update({{"sqnr_db", error.sqnr_db}, {"max_error", error.max_error}});
    rows.push_back(row);
    weights.emplace(layer.name, int8);
  }
  return rows;
}

// Gates that failed are named on stderr.
ordered_json check_gates(const Arguments& arguments, double size_ratio, std::optional<double> drop,
                         bool& failed) {
  ordered_json gates = ordered_json::array();
  const auto gate = [&](const char* name, double limit, double value, bool passed) {
    gates.push_back({{"name", name}, {"limit", limit}, {"value", value}, {"passed", passed}});
    failed = failed || !passed;
    if (!passed)
      fmt::print(stderr, "mcompress: gate {} failed: {:.4f}, and {:.4f} is the limit\n", name, value, limit);
  };
  if (arguments.min_size_ratio > 0)
    gate("min_size_ratio", arguments.min_size_ratio, size_ratio, size_ratio >= arguments.min_size_ratio);
  if (arguments.max_accuracy_drop >= 0)
    gate("max_accuracy_drop", arguments.max_accuracy_drop, *drop, *drop <= arguments.max_accuracy_drop);
  return gates;
}

void print_row(const char* name, uint64_t bytes, const std::optional<Accuracy>& accuracy) {
  fmt::print("{:<10} {:>12} bytes", name, bytes);
  if (accuracy)
    fmt::print("   top-1 {:.2f} %   {:.0f} samples/s", 100 * accuracy->top1.value(),
               static_cast<double>(accuracy->top1.total) / accuracy->seconds);
  fmt::print("\n");
}

ordered_json settings_of(const Arguments& arguments) {
  return {{"mode", arguments.mode},
          {"runtime", arguments.runtime},
          {"layer", arguments.only},
          {"ignore", arguments.ignore},
          {"embeddings", arguments.embeddings}};
}

// What both kinds of model end with: sizes, gates, table, report, exit code.
int conclude(const Arguments& arguments, const ordered_json& rows, const ordered_json& metrics,
             const std::optional<Accuracy>& before, const std::optional<Accuracy>& after) {
  const ordered_json input = describe_file(arguments.model);
  const ordered_json output = describe_file(arguments.output);
  const auto bytes_before = input["bytes"].get<uint64_t>();
  const auto bytes_after = output["bytes"].get<uint64_t>();
  const double ratio = static_cast<double>(bytes_before) / static_cast<double>(bytes_after);
  std::optional<double> drop;
  if (before) drop = before->top1.value() - after->top1.value();
  bool failed = false;
  const ordered_json gates = check_gates(arguments, ratio, drop, failed);
  if (arguments.run.report != "-") {
    print_row("before", bytes_before, before);
    print_row("after", bytes_after, after);
    fmt::print("{:.2f} times smaller\n", ratio);
  }
  write_report({{"settings", settings_of(arguments)},
                {"input", input},
                {"output", output},
                {"size_ratio", ratio},
                {"metrics", metrics},
                {"layers", rows},
                {"gates", gates}},
               "quantize", arguments.run);
  return failed ? static_cast<int>(Exit::kGateFailed) : 0;
}

int quantize_program(const Arguments& arguments) {
  std::optional<Images> images;
  if (!arguments.data.path.empty()) images = load_images(arguments.data.path, arguments.data.options);
  const Runtime runtime = arguments.runtime == "int8" ? Runtime::kInt8 : Runtime::kPortable;
  const torch::jit::Module program = load_program(arguments.model, arguments.run.trust_code);
  const std::vector<Layer> layers = list_layers(program);
  std::vector<Decision> plan;
  for (const Layer& layer : layers) plan.push_back({layer.name, layer.kind, layer.obstacle});
  decide(plan, arguments);
  for (size_t i = 0; i < plan.size(); ++i) {
    if (plan[i].reason.empty()) check_finite(layers[i]);
  }
  if (arguments.dry_run) {
    print_plan(plan);
    return 0;
  }
  std::map<std::string, Int8Channel> weights;
  const ordered_json rows = quantize_layers(layers, plan, runtime, weights);
  OutputFile file(arguments.output, arguments.run.force);
  save_program(replace_layers(program, layers, weights, runtime), file);
  file.commit();

  // The numbers after speak of the artifact on disk.
  const torch::jit::Module reopened = load_program(arguments.output, arguments.run.trust_code);
  if (!images) return conclude(arguments, rows, nullptr, std::nullopt, std::nullopt);
  const Accuracy before = measure_accuracy(program_forward(program), *images, arguments.data.batch_size);
  const Accuracy after = measure_accuracy(program_forward(reopened), *images, arguments.data.batch_size);
  const ordered_json metrics = {{"before", to_json(before)},
                                {"after", to_json(after)},
                                {"agreement", agreement(before, after).value()},
                                {"output_sqnr_db", output_sqnr_db(before, after)},
                                {"latency_ratio", after.seconds / before.seconds}};
  return conclude(arguments, rows, metrics, before, after);
}

int quantize_checkpoint(const Arguments& arguments, ModelFormat format) {
  if (!arguments.data.path.empty()) {
    throw error(Exit::kUsage,
                "'{}' holds weights without a program, so --eval-data cannot be used; pass TorchScript",
                arguments.model);
  }
  if (format == ModelFormat::kHuggingFace) {
    throw bad_data(
        "'{}' is a Hugging Face folder, which quantize does not write yet; pass its safetensors file",
        arguments.model);
  }
  const CheckpointFiles checkpoint = read_checkpoint(arguments.model, format);
  std::vector<Decision> plan;
  std::vector<size_t> indices;  // of the plan's arrays
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    LayerKind kind{};
    if (!guess_kind(checkpoint.arrays[i], kind)) continue;
    plan.push_back({checkpoint.arrays[i].name, kind, ""});
    indices.push_back(i);
  }
  decide(plan, arguments);
  if (arguments.dry_run) {
    print_plan(plan);
    return 0;
  }
  std::vector<bool> chosen(checkpoint.arrays.size(), false);
  ordered_json rows = ordered_json::array();
  for (size_t i = 0; i < plan.size(); ++i) {
    const Array& array = checkpoint.arrays[indices[i]];
    chosen[indices[i]] = plan[i].reason.empty();
    const uint64_t elements = count_elements(array.shape).value();
    const uint64_t bytes = elements * size_of(array.dtype);
    const uint64_t int8_bytes = elements + static_cast<uint64_t>(array.shape[0]) * sizeof(float);
    rows.push_back(describe_decision(plan[i], bytes, chosen[indices[i]] ? int8_bytes : bytes));
  }
  OutputFile file(arguments.output, arguments.run.force);
  write_int8_safetensors(
      checkpoint, chosen, [](const at::Tensor& r) { return quantize_rows(r, Int8Grid::kRow); }, file);
  file.commit();
  read_checkpoint(arguments.output, ModelFormat::kSafetensors);  // what was written opens again
  return conclude(arguments, rows, nullptr, std::nullopt, std::nullopt);
}

int quantize(const Arguments& arguments) {
  apply(arguments.run);
  if (arguments.max_accuracy_drop >= 0 && arguments.data.path.empty()) {
    throw error(Exit::kUsage, "--max-accuracy-drop needs --eval-data");
  }
  if (!arguments.dry_run) {
    check_output(arguments.output, OutputKind::kFile, arguments.run.force, arguments.model);
  }
  check_report(arguments.run);
  const ModelFormat format = detect_model(arguments.model);
  return format == ModelFormat::kTorchScript ? quantize_program(arguments)
                                             : quantize_checkpoint(arguments, format);
}

}  // namespace

Command quantize_command() {
  auto arguments = std::make_shared<Arguments>();
  const auto add_options = [arguments](CLI::App& app) {
    app.add_option("model,-m,--model", arguments->model,
                   "Model to quantize: TorchScript, state dict or safetensors")
        ->required();
    app.add_option("-o,--output", arguments->output, "File to write")->required();
    app.add_option("--mode", arguments->mode, "dynamic: int8 weights, activations quantized when they come")
        ->check(CLI::IsMember({"dynamic"}))
        ->capture_default_str();
    app.add_option("--runtime", arguments->runtime,
                   "int8: oneDNN's int8 kernels; portable: plain operators, any CPU")
        ->check(CLI::IsMember({"int8", "portable"}))
        ->capture_default_str();
    app.add_option("--layer", arguments->only, "Only layers that match; repeatable");
    app.add_option("--ignore", arguments->ignore, "Leave layers alone that match; repeatable");
    app.add_flag("--embeddings", arguments->embeddings, "Quantize embeddings too");
    app.add_flag("--dry-run", arguments->dry_run, "Print the decision for each layer and stop");
    app.add_option("--max-accuracy-drop", arguments->max_accuracy_drop,
                   "Gate: top-1 may drop by this fraction, 0.005 for half a point");
    app.add_option("--min-size-ratio", arguments->min_size_ratio,
                   "Gate: the file is at least this many times smaller");
    add_data_options(app, arguments->data);
    add_run_options(app, arguments->run);
  };
  return {"quantize", "Store weights as 8-bit integers", add_options,
          [arguments] { return quantize(*arguments); }};
}

}  // namespace mcompress::cli
