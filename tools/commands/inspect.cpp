#include <map>
#include <set>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "command.h"
#include "inspect_language.h"
#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/bitmask.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/program.h"
#include "models.h"
#include "quantize.h"

namespace mcompress::cli {

namespace {

using nlohmann::ordered_json;

struct Row {
  std::string name, kind, dtype;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  int64_t non_finite = 0;
  std::string obstacle;  // why quantize cannot treat it; empty where it can
  bool prunable = false;
  std::string same_as = {};  // an earlier row that shares its storage
  std::string equals = {};   // an earlier row of the same content
};

// Of a kind of layer, embeddings being allowed.
std::string quantize_obstacle(LayerKind kind) {
  QuantizeCommand options;
  options.groups.embedding_bits = 8;
  return obstacle_of(kind, options);
}

at::Tensor as_bytes(const at::Tensor& values) { return values.detach().contiguous().view(at::kByte); }

// Marks rows whose values are those of an earlier one.
class TwinFinder {
 public:
  void visit(Row& row, const at::Tensor& values) {
    const auto tied = by_place_.emplace(values.data_ptr(), row.name);
    if (!tied.second && values.numel() > 0) {
      row.same_as = tied.first->second;
      return;
    }
    for (const auto& [name, other] : by_size_[{row.dtype, values.numel()}]) {
      if (row.equals.empty() && values.numel() > 1 && other.sizes() == values.sizes() &&
          at::equal(as_bytes(other), as_bytes(values)))
        row.equals = name;
    }
    if (row.equals.empty()) by_size_[{row.dtype, values.numel()}].emplace_back(row.name, values);
  }

 private:
  std::map<const void*, std::string> by_place_;
  std::map<std::pair<std::string, int64_t>, std::vector<std::pair<std::string, at::Tensor>>> by_size_;
};

std::vector<Row> list_program(const torch::jit::Module& program) {
  std::vector<Row> rows;
  TwinFinder twins;
  std::map<std::string, Layer> layers;
  for (const Layer& layer : list_layers(program)) layers.emplace(layer.name + ".weight", layer);
  const auto add = [&](const std::string& name, at::Tensor values) {
    if (values.is_quantized()) values = values.int_repr();
    if (values.is_sparse()) values = values.coalesce().values();
    const auto layer = layers.find(name);
    Row row{name,
            "other",
            c10::toString(values.scalar_type()),
            values.sizes().vec(),
            values.nbytes(),
            count_elements_of(values).non_finite,
            "not the weight of a linear layer, convolution or embedding"};
    if (layer != layers.end()) {
      row.kind = name_of(layer->second.kind);
      row.prunable = values.is_floating_point() && values.element_size() > 1 && values.numel() > 0;
      row.obstacle =
          layer->second.obstacle.empty() ? quantize_obstacle(layer->second.kind) : layer->second.obstacle;
    }
    twins.visit(row, values);
    rows.push_back(row);
  };
  for (const auto& parameter : program.named_parameters()) add(parameter.name, parameter.value);
  for (const auto& buffer : program.named_buffers()) add(buffer.name, buffer.value);
  return rows;
}

std::vector<Row> list_checkpoint(const CheckpointFiles& checkpoint) {
  std::vector<Row> rows;
  TwinFinder twins;
  const std::set<std::string> names = names_of(checkpoint);
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    Row row{array.name,
            "other",
            name_of(array.dtype),
            array.shape,
            count_elements(array.shape).value() * size_of(array.dtype),
            0,
            "not the weight of a linear layer, convolution or embedding"};
    LayerKind kind{};
    if (guess_kind(array, kind)) {
      row.kind = name_of(kind);
      row.obstacle = obstacle_of(array, names);
      row.prunable = row.obstacle.empty();
      if (row.obstacle.empty()) row.obstacle = quantize_obstacle(kind);
    }
    row.non_finite = count_elements_of(array, *checkpoint.files[checkpoint.file_of[i]]).non_finite;
    twins.visit(row, rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]));
    rows.push_back(row);
  }
  return rows;
}

ordered_json row_json(const Row& row) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? ordered_json(nullptr) : ordered_json(text);
  };
  ordered_json commands = ordered_json::array();
  if (row.obstacle.empty()) commands.push_back("quantize");
  if (row.prunable) commands.push_back("prune");
  return {{"name", row.name},
          {"kind", row.kind},
          {"shape", row.shape},
          {"dtype", row.dtype},
          {"bytes", row.bytes},
          {"non_finite", row.non_finite},
          {"tied_to", or_null(row.same_as)},
          {"duplicate_of", or_null(row.equals)},
          {"commands", commands},
          {"obstacle", or_null(row.obstacle)}};
}

void print_rows(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    std::string remark;
    if (row.non_finite > 0) remark += fmt::format("  {} NaN or infinite", row.non_finite);
    if (!row.same_as.empty()) remark += "  tied to " + row.same_as;
    if (!row.equals.empty()) remark += "  duplicate of " + row.equals;
    if (row.kind != "other" && !row.obstacle.empty()) remark += "  " + row.obstacle;
    fmt::print("{:<48} {:<10} {:<9} [{}] {:>12}{}\n", printable(row.name), row.kind, row.dtype,
               fmt::join(row.shape, ", "), row.bytes, remark);
  }
}

struct Options {
  std::string model;
  bool json = false, values = false;
};

void inspect(const Options& options, const RunOptions& run, Report& report) {
  const ModelFormat format = detect_model(options.model);
  std::vector<Row> rows;
  WeightCount count;
  std::vector<std::string> notes;
  if (options.json && run.report == "-")
    throw error(Exit::kUsage, "--json and --report - both want stdout; name a file for one");
  const bool folder = format == ModelFormat::kHuggingFace;
  if (options.values && !folder)
    throw error(Exit::kUsage, "--values is for folders, and '{}' is none{}", options.model,
                format == ModelFormat::kGguf ? "" : "; of other files the values are always read");
  if (format == ModelFormat::kGguf || (folder && !options.values)) {
    const InspectOutput output = options.json        ? InspectOutput::kJson
                                 : run.report == "-" ? InspectOutput::kNothing
                                                     : InspectOutput::kText;
    return inspect_language(options.model, format, output, report);
  }
  if (format == ModelFormat::kTorchScript) {
    const auto program = load_program(options.model, run.trust_code);
    rows = list_program(program);
    count = count_program(program);
  } else {
    const CheckpointFiles checkpoint = read_checkpoint(options.model, format);
    rows = list_checkpoint(checkpoint);
    count = count_checkpoint(checkpoint);
    notes = checkpoint.notes;
    if (is_bitmask(checkpoint.metadata))
      notes.emplace_back("stored as a bitmask; 'mcompress expand' gives the dense file back");
  }
  report.input = describe_artifact(options.model, name_of(format), count);
  for (const Row& row : rows) {
    if (row.non_finite > 0)
      report.warnings.push_back(
          fmt::format("'{}' holds {} values that are NaN or infinite", row.name, row.non_finite));
  }
  if (options.json) {
    ordered_json layers = ordered_json::array();
    for (const Row& row : rows) layers.push_back(row_json(row));
    const ordered_json result = {{"format", report.input->format},
                                 {"bytes", report.input->bytes},
                                 {"sha256", report.input->sha256},
                                 {"parameters", count.parameters},
                                 {"nonzeros", count.nonzeros.value_or(0)},
                                 {"notes", notes},
                                 {"layers", layers}};
    fmt::print("{}\n", result.dump(2, ' ', false, ordered_json::error_handler_t::replace));
  } else if (run.report != "-") {
    fmt::print("{}: {} parameters, {} not zero\n", report.input->format, count.parameters,
               count.nonzeros.value_or(0));
    for (const std::string& note : notes) fmt::print("{}\n", printable(note));
    print_rows(rows);
  }
}

}  // namespace

Command inspect_command() {
  auto options = std::make_shared<Options>();
  const auto add_options = [options](CLI::App& app) {
    app.add_option("model,-m,--model", options->model, "Model to look at")->required();
    app.add_flag("--json", options->json, "Print JSON");
    app.add_flag("--values", options->values,
                 "Read the weights of a folder too: zeros, NaN, duplicates, and what prevents a command");
  };
  const auto run = [options](const RunOptions& r, Report& report) { inspect(*options, r, report); };
  return {"inspect", "List the weights of a model and what can be done with them", add_options, run};
}

}  // namespace mcompress::cli
