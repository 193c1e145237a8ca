#include <algorithm>
#include <filesystem>
#include <map>

#include <ATen/ATen.h>

#include "convert.h"
#include "gguf_plan.h"
#include "mcompress/base/output.h"
#include "mcompress/base/progress.h"
#include "mcompress/data/tokenizer.h"
#include "mcompress/model/gguf_export.h"
#include "mcompress/model/pieces.h"
#include "models.h"

namespace mcompress::cli {

namespace {

struct NamedType {
  GgufType type;
  uint32_t file_type;  // general.file_type (llama.h)
};

const std::map<std::string, NamedType>& types() {
  static const std::map<std::string, NamedType> kTypes = {
      {"F32", {GgufType::kF32, 0}},    {"F16", {GgufType::kF16, 1}},   {"BF16", {GgufType::kBF16, 32}},
      {"Q4_0", {GgufType::kQ4_0, 2}},  {"Q4_1", {GgufType::kQ4_1, 3}}, {"Q8_0", {GgufType::kQ8_0, 7}},
      {"Q4_K", {GgufType::kQ4_K, 14}}, {"Q6_K", {GgufType::kQ6_K, 18}}};
  return kTypes;
}

// llama.cpp knows the window of phi3 models, and does not use it.
void warn_of_window(const DecoderConfig& config, Report& report) {
  const int64_t window = *std::max_element(config.windows.begin(), config.windows.end());
  if (config.model_type == "phi3" && window > 0 && window < config.positions)
    report.warnings.push_back(
        fmt::format("llama.cpp lets tokens of phi3 models attend to all before them, and not to the last {} "
                    "only; texts of up to {} tokens are computed alike",
                    window, window));
}

// Of a matrix.
LayerRecord record_of(const GgufPlace& place, const Planned& planned) {
  LayerRecord record;
  record.name = place.name;
  record.kind = place.name.ends_with("_embd.weight") ? "embedding" : "linear";
  record.decision = name_of(planned.type);
  record.reason = planned.reason;
  record.parameters = place.shape[0] * place.shape[1];
  record.bytes_before = 4 * static_cast<uint64_t>(*record.parameters);
  const GgufBlock block = block_of(planned.type);
  record.bytes_after = static_cast<uint64_t>(*record.parameters / block.values) * block.bytes;
  return record;
}

// The tensor as the file has it.
at::Tensor blocks_of(const Decoder& model, const PackedLayers& packed, const GgufPlace& place,
                     const Planned& planned) {
  const at::Tensor values = gguf_values(model, place);
  if (!values.isfinite().all().item<bool>())
    throw bad_data("tensor '{}' holds NaN or infinity", place.source);
  const bool halves = planned.type != GgufType::kF32 && planned.type != GgufType::kBF16;
  if (halves && values.abs().max().item<double>() > kLargestHalf)
    throw bad_data("tensor '{}' has values beyond float16, in which {} has its scales; use --type BF16",
                   place.source, name_of(planned.type));
  const at::Tensor scales =
      planned.keeps_codes ? gguf_scales(packed.read(place), place, planned.type, true) : at::Tensor();
  return gguf_blocks(values.dim() < 2 ? values.unsqueeze(0) : values, planned.type, scales);
}

}  // namespace

void warn_of_rounded_inputs(Report& report) {
  report.warnings.emplace_back(
      "layers of the input round their inputs to 8 bits, which those of the output do not, so that it may "
      "compute slightly better");
}

std::vector<std::string> gguf_type_names() {
  std::vector<std::string> names;
  for (const auto& [name, type] : types()) names.push_back(name);
  return names;
}

void convert_to_gguf(const ConvertCommand& options, const RunOptions& run, Report& report) {
  if (!options.output.empty()) {
    check_output(options.output, OutputKind::kFile, run.force, run.inputs);
    refuse_output_inside(options.output, options.model);
  }
  BackgroundHash hash(options.model);
  const Decoder model = timed(report, "load", [&] { return Decoder(options.model, at::kFloat); });
  const DecoderConfig& config = model.config();
  warn_of_window(config, report);
  load_tokenizer(options.model);  // which says what is wrong with it
  const NamedType wanted = types().at(options.type);
  auto metadata =
      gguf_model_fields(config, std::filesystem::weakly_canonical(options.model).filename().string());
  metadata.emplace_back("general.file_type", wanted.file_type);
  for (auto& field : gguf_tokenizer_fields(options.model, config.vocabulary))
    metadata.push_back(std::move(field));
  const PackedLayers packed(options.model);
  if (packed.rounds_inputs()) warn_of_rounded_inputs(report);
  const std::vector<GgufPlace> places = gguf_places(config);
  std::vector<GgufWriter::Entry> entries;
  const std::vector<Planned> plan = timed(report, "plan", [&] {
    return plan_types(places, packed, wanted.type, config.tied_head, options.allow_requantize);
  });
  for (size_t i = 0; i < places.size(); ++i) {
    entries.push_back({places[i].name, plan[i].type, places[i].shape});
    if (places[i].shape.size() > 1) report.layers.push_back(record_of(places[i], plan[i]));
  }
  const GgufWriter writer(metadata, entries);
  report.predicted_bytes = writer.file_bytes();
  report.input = describe_artifact(options.model, name_of(ModelFormat::kHuggingFace),
                                   count_checkpoint(packed.checkpoint()), hash);
  if (options.dry_run) return finish_dry_run(run, report);
  check_output(options.output, OutputKind::kFile, run.force, run.inputs, *report.predicted_bytes);
  OutputFile output(options.output, run.force);
  timed(report, "write", [&] {
    Progress progress("convert", static_cast<int64_t>(places.size()));
    writer.write_header(output);
    for (size_t i = 0; i < places.size(); ++i) {
      writer.write(output, i, 0, bytes_of(blocks_of(model, packed, places[i], plan[i])));
      progress.step();
    }
  });
  reopen(report, [&] {
    load_tokenizer(output.temporary());
    return Decoder(output.temporary(), at::kFloat);
  });
  output.commit();
  report.output = describe_artifact(options.output, name_of(ModelFormat::kGguf), count_gguf(options.output));
}

}  // namespace mcompress::cli
