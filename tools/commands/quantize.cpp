#include <map>
#include <optional>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/pattern.h"
#include "mcompress/base/progress.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/methods/dynamic.h"
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

// One layer and what is done with it; an empty reason means that it is quantized.
struct Decision {
  Layer layer;
  std::string reason;
};

bool any_matches(const std::vector<Pattern>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const Pattern& p) { return p.matches(name); });
}

std::vector<Pattern> read_patterns(const std::vector<std::string>& expressions,
                                   const std::vector<Layer>& layers, const char* option) {
  std::vector<Pattern> patterns;
  for (const std::string& expression : expressions) {
    patterns.emplace_back(expression);
    const bool used = std::any_of(layers.begin(), layers.end(),
                                  [&](const Layer& l) { return patterns.back().matches(l.name); });
    if (!used)
      throw error(Exit::kUsage, "{} '{}' matches no layer; 'mcompress inspect' lists their names", option,
                  expression);
  }
  return patterns;
}

std::string reason_to_skip(const Layer& layer, const Arguments& arguments) {
  if (layer.kind == LayerKind::kConv1d || layer.kind == LayerKind::kConv2d)
    return "dynamic mode treats no convolutions";
  if (layer.kind == LayerKind::kEmbedding && !arguments.embeddings)
    return "embeddings are left alone without --embeddings";
  return layer.obstacle;
}

std::vector<Decision> make_plan(const std::vector<Layer>& layers, const Arguments& arguments) {
  const auto only = read_patterns(arguments.only, layers, "--layer");
  const auto ignore = read_patterns(arguments.ignore, layers, "--ignore");
  std::vector<Decision> plan;
  int64_t chosen = 0;
  for (const Layer& layer : layers) {
    std::string reason = reason_to_skip(layer, arguments);
    if (any_matches(ignore, layer.name)) reason = "matched by --ignore";
    if (!only.empty() && !any_matches(only, layer.name)) reason = "not matched by --layer";
    const int64_t non_finite = layer.weight.numel() - layer.weight.isfinite().sum().item<int64_t>();
    if (reason.empty() && non_finite > 0) {
      throw bad_data(
          "weight of layer '{}' holds {} values that are NaN or infinite; repair the model or pass --ignore "
          "'^{}$'",
          layer.name, non_finite, layer.name);
    }
    chosen += reason.empty() ? 1 : 0;
    plan.push_back({layer, reason});
  }
  if (chosen == 0) throw bad_data("'{}' has no layer that dynamic mode can quantize", arguments.model);
  return plan;
}

ordered_json quantize_layers(const std::vector<Decision>& plan, Runtime runtime,
                             std::map<std::string, Int8Channel>& weights) {
  ordered_json rows = ordered_json::array();
  Progress progress("quantize", static_cast<int64_t>(plan.size()));
  for (const auto& [layer, reason] : plan) {
    ordered_json row = {
        {"name", layer.name}, {"kind", name_of(layer.kind)}, {"bytes_before", layer.weight.nbytes()}};
    if (reason.empty()) {
      const bool pairs = runtime == Runtime::kInt8 && layer.kind == LayerKind::kLinear;
      const Int8Channel int8 = quantize_rows(layer.weight, pairs ? Int8Grid::kPair : Int8Grid::kRow);
      const QuantizationError error = error_of(layer.weight, int8);
      row.update({{"decision", "int8"},
                  {"reason", nullptr},
                  {"bytes_after", int8.codes.nbytes() + int8.scale.nbytes()},
                  {"sqnr_db", error.sqnr_db},
                  {"max_error", error.max_error}});
      weights.emplace(layer.name, int8);
    } else {
      row.update({{"decision", "keep"}, {"reason", reason}, {"bytes_after", layer.weight.nbytes()}});
    }
    rows.push_back(row);
    progress.step();
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

int quantize(const Arguments& arguments) {
  apply(arguments.run);
  if (arguments.max_accuracy_drop >= 0 && arguments.data.path.empty()) {
    throw error(Exit::kUsage, "--max-accuracy-drop needs --eval-data");
  }
  if (!arguments.dry_run)
    check_output(arguments.output, OutputKind::kFile, arguments.run.force, arguments.model);
  check_report(arguments.run);
  if (detect_model(arguments.model) != ModelFormat::kTorchScript) {
    throw bad_data("'{}' holds weights without a program; quantize reads TorchScript so far",
                   arguments.model);
  }
  std::optional<Images> images;
  if (!arguments.data.path.empty()) images = load_images(arguments.data.path, arguments.data.options);
  const Runtime runtime = arguments.runtime == "int8" ? Runtime::kInt8 : Runtime::kPortable;
  const torch::jit::Module program = load_program(arguments.model, arguments.run.trust_code);
  const auto plan = make_plan(list_layers(program), arguments);
  if (arguments.dry_run) {
    for (const auto& [layer, reason] : plan)
      fmt::print("{:<40} {}\n", layer.name, reason.empty() ? "int8" : "keep: " + reason);
    return 0;
  }
  std::map<std::string, Int8Channel> weights;
  const ordered_json rows = quantize_layers(plan, runtime, weights);
  std::vector<Layer> layers;
  for (const Decision& decision : plan) layers.push_back(decision.layer);
  {
    OutputFile file(arguments.output, arguments.run.force);
    save_program(replace_layers(program, layers, weights, runtime), file);
    file.commit();
  }
  const ordered_json input = describe_file(arguments.model);
  const ordered_json output = describe_file(arguments.output);
  const auto bytes_before = input["bytes"].get<uint64_t>();
  const auto bytes_after = output["bytes"].get<uint64_t>();
  const double ratio = static_cast<double>(bytes_before) / static_cast<double>(bytes_after);

  // The numbers after speak of the artifact on disk.
  const torch::jit::Module reopened = load_program(arguments.output, arguments.run.trust_code);
  std::optional<Accuracy> before, after;
  ordered_json metrics = nullptr;
  std::optional<double> drop;
  if (images) {
    before = measure_accuracy(program_forward(program), *images, arguments.data.batch_size);
    after = measure_accuracy(program_forward(reopened), *images, arguments.data.batch_size);
    drop = before->top1.value() - after->top1.value();
    metrics = {{"before", to_json(*before)},
               {"after", to_json(*after)},
               {"agreement", agreement(*before, *after).value()},
               {"output_sqnr_db", output_sqnr_db(*before, *after)},
               {"latency_ratio", after->seconds / before->seconds}};
  }
  bool failed = false;
  const ordered_json gates = check_gates(arguments, ratio, drop, failed);
  if (arguments.run.report != "-") {
    print_row("before", bytes_before, before);
    print_row("after", bytes_after, after);
    fmt::print("{:.2f} times smaller\n", ratio);
  }
  write_report({{"settings",
                 {{"mode", arguments.mode},
                  {"runtime", arguments.runtime},
                  {"layer", arguments.only},
                  {"ignore", arguments.ignore},
                  {"embeddings", arguments.embeddings}}},
                {"input", input},
                {"output", output},
                {"size_ratio", ratio},
                {"metrics", metrics},
                {"layers", rows},
                {"gates", gates}},
               "quantize", arguments.run);
  return failed ? static_cast<int>(Exit::kGateFailed) : 0;
}

}  // namespace

Command quantize_command() {
  auto arguments = std::make_shared<Arguments>();
  const auto add_options = [arguments](CLI::App& app) {
    app.add_option("model,-m,--model", arguments->model, "TorchScript model to quantize")->required();
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
