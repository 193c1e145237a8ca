#include <memory>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "command.h"
#include "mcompress/base/error.h"
#include "mcompress/base/text.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/packed_verify.h"
#include "mcompress/model/program.h"
#include "models.h"

namespace mcompress::cli {

namespace {

struct Options {
  std::string model;
  std::optional<std::string> against;
  bool json = false;
};

// Buffers may hold -infinity, as masks of attention do.
void check_finite(const torch::jit::Module& program, Verification& result) {
  const auto check = [&](const std::string& name, const at::Tensor& values, bool buffer) {
    if (!values.defined() || !at::isFloatingType(values.scalar_type())) return;
    const at::Tensor wrong =
        buffer ? values.isnan().logical_or(values.isposinf()) : values.isfinite().logical_not();
    const auto count = wrong.sum().item<int64_t>();
    if (count > 0)
      result.findings.push_back({name, fmt::format("has {} values that are NaN or infinite", count)});
  };
  for (const auto& parameter : program.named_parameters()) check(parameter.name, parameter.value, false);
  for (const auto& buffer : program.named_buffers()) check(buffer.name, buffer.value, true);
}

// A file that is none of packed layers: whether it opens, and whether its numbers are finite.
Verification verify_file(const std::string& path, ModelFormat format, bool trust_code) {
  Verification result;
  try {
    if (format == ModelFormat::kTorchScript) {
      check_finite(load_program(path, trust_code), result);
    } else {
      const CheckpointFiles checkpoint = read_checkpoint(path, format);
      for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
        const Array& array = checkpoint.arrays[i];
        const ElementCount count = count_elements_of(array, *checkpoint.files[checkpoint.file_of[i]]);
        if (count.non_finite > 0)
          result.findings.push_back(
              {array.name, fmt::format("has {} values that are NaN or infinite", count.non_finite)});
      }
    }
  } catch (const Error& failure) {
    if (failure.code() != Exit::kBadData) throw;
    result.findings.push_back({path, failure.what()});
  }
  return result;
}

// None of a model that does not open.
WeightCount count_of(const std::string& path, ModelFormat format, bool trust_code) {
  try {
    return count_model(path, format, trust_code);
  } catch (const Error& failure) {
    if (failure.code() != Exit::kBadData) throw;
    return {0, {}};
  }
}

void print(const Verification& found, bool json) {
  using nlohmann::ordered_json;
  if (!json) {
    for (const Finding& finding : found.findings)
      fmt::print("{}: {}\n", printable(finding.where), printable(finding.what));
    for (const LayerMatch& layer : found.layers)
      fmt::print("{}: {:.1f} dB beside the original\n", printable(layer.name), layer.sqnr_db);
    if (found.findings.empty()) fmt::print("nothing found; {} packed layers\n", found.checked);
    return;
  }
  ordered_json findings = ordered_json::array(), layers = ordered_json::array();
  for (const Finding& finding : found.findings)
    findings.push_back({{"where", finding.where}, {"what", finding.what}});
  for (const LayerMatch& layer : found.layers)
    layers.push_back({{"name", layer.name}, {"sqnr_db", layer.sqnr_db}});
  const ordered_json result = {{"checked", found.checked}, {"findings", findings}, {"layers", layers}};
  fmt::print("{}\n", result.dump(2, ' ', false, ordered_json::error_handler_t::replace));
}

void verify(const Options& options, const RunOptions& run, Report& report) {
  if (options.json && run.report == "-")
    throw error(Exit::kUsage, "--json and --report - both want stdout; name a file for one");
  const ModelFormat format = detect_model(options.model);
  const bool folder = format == ModelFormat::kHuggingFace;
  if (options.against && !folder)
    throw error(Exit::kUsage, "--against is for folders of packed layers, and '{}' is {}", options.model,
                name_of(format));
  const Verification found = timed(report, "verify", [&] {
    return folder                         ? verify_folder(options.model, options.against)
           : format == ModelFormat::kGguf ? verify_gguf(options.model)
                                          : verify_file(options.model, format, run.trust_code);
  });
  for (const LayerMatch& layer : found.layers) {
    LayerRecord record;
    record.name = layer.name;
    record.kind = "linear";
    record.decision = "keep";
    record.sqnr_db = layer.sqnr_db;
    report.layers.push_back(std::move(record));
  }
  report.input =
      describe_artifact(options.model, name_of(format), count_of(options.model, format, run.trust_code));
  report.findings = found.findings;
  report.warnings = found.notes;
  if (run.report != "-") print(found, options.json);
  if (!found.findings.empty()) report.exit_code = static_cast<int>(Exit::kBadData);
}

}  // namespace

Command verify_command() {
  auto options = std::make_shared<Options>();
  const auto add_options = [options](CLI::App& app) {
    app.add_option("model,-m,--model", options->model,
                   "Folder of GPTQ, AWQ or compressed-tensors, whichever tool wrote it, or any model file")
        ->required();
    app.add_option("--against", options->against, "What it was made of: layers must look like theirs");
    app.add_flag("--json", options->json, "Print one JSON object in place of a line a finding");
  };
  const auto run = [options](const RunOptions& r, Report& report) { verify(*options, r, report); };
  return {"verify", "Look for what is wrong in a compressed model; exit 65 where something is", add_options,
          run};
}

}  // namespace mcompress::cli
