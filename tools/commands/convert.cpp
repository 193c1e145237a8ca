#include "convert.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include <ATen/ATen.h>

#include "mcompress/base/in_layer.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/progress.h"
#include "mcompress/methods/group_grid.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/packed_folder.h"
#include "packed_plan.h"
#include "packed_run.h"

namespace mcompress::cli {

namespace {

// Whether scales are numbers of float16, in which packed forms are written, or near ones.
enum class Scales { kFloat16, kNear, kFar };

Scales kind_of_scales(const at::Tensor& scale) {
  if (scale.scalar_type() == at::kHalf) return Scales::kFloat16;
  constexpr double kStep = 0x1p-10;  // of float16, but for its smallest numbers
  const at::Tensor off = (scale.to(at::kHalf).to(at::kFloat) - scale).abs();
  return off.le(scale.abs() * kStep).all().item<bool>() ? Scales::kNear : Scales::kFar;
}

// How a layer's codes lie, as another form must hold them.
struct Stored {
  PackedLayer layer;
  bool in_order = true;                // groups are neighbours of one size
  uint64_t bytes = 0;                  // in the source
  std::optional<GroupGrid> anew = {};  // on which its values are rounded, where the codes cannot stay
  Scales scales = Scales::kFloat16;
};

Stored describe(PackedForm source, const std::string& name, const IntGroup& weight) {
  const int64_t channels = weight.codes.size(1), groups = weight.scale.size(1);
  const auto covers = [&](int64_t size) { return size > 0 && (channels + size - 1) / size == groups; };
  // The last group may be smaller, and g_idx may leave groups unused.
  int64_t size = at::bincount(weight.groups, {}, groups).max().item<int64_t>();
  if (!covers(size)) size = (channels + groups - 1) / groups;
  if (!covers(size))
    throw bad_data("layer '{}': its {} channels in {} groups have no one group size", name, channels, groups);
  Stored stored;
  stored.in_order = weight.groups.equal(at::arange(channels).div(size, "floor"));
  stored.layer = {name,
                  weight.codes.size(0),
                  channels,
                  weight.bits,
                  groups == 1 ? -1 : size,
                  weight.zero.eq(1 << (weight.bits - 1)).all().item<bool>(),
                  is_compressed_tensors(source) && is_embedding(name + ".weight")};
  stored.scales = kind_of_scales(weight.scale);
  return stored;
}

// The layers of the source, and the folder that holds them in the other form.
struct Plan {
  std::vector<Stored> layers;
  PackedFolder folder;
};

// Why the codes cannot be taken over as they are; empty where they can.
std::string refusal_of(PackedForm form, const Stored& stored) {
  const PackedLayer& layer = stored.layer;
  if (layer.embedding && is_compressed_tensors(form) && (layer.group_size != -1 || !layer.symmetric))
    return fmt::format(
        "--format {} has embeddings of one scale a row without zero points; use --format dequantized",
        name_of(form));
  // compressed-tensors had one, weight_g_idx, which its readers know no more.
  if (!stored.in_order && !is_gptq(form))
    return fmt::format("its groups are in the order of act-order (g_idx), which --format {} has no place for",
                       name_of(form));
  if (stored.scales == Scales::kFar)
    return fmt::format("it has scales that float16, in which --format {} has them, has no number near for",
                       name_of(form));
  const std::string obstacle = packed_obstacle(form, layer.outputs, layer.inputs);
  return obstacle.empty() ? packed_refusal(form, layer) : obstacle;
}

// Codes of a width that the form lacks are codes of the next one, zero points with them.
void widen(PackedForm form, PackedLayer& layer) {
  if (form == PackedForm::kAwq && layer.bits < 4) layer.bits = 4;
  if ((is_gptq(form) && layer.bits > 4) || layer.embedding) layer.bits = 8;
}

IntGroup widened(IntGroup weight, int bits) {
  const int more = (1 << (bits - 1)) - (1 << (weight.bits - 1));
  return {bits, weight.codes.add(more), weight.scale, weight.zero.add(more), weight.groups};
}

// Takes the next width that the form has, with groups of neighbours. Throws Error(2) where its sizes do not
// fit.
void round_anew(PackedForm form, Stored& stored) {
  PackedLayer& layer = stored.layer;
  std::string obstacle = packed_obstacle(form, layer.outputs, layer.inputs);
  if (layer.embedding) obstacle = refusal_of(form, stored);
  if (!obstacle.empty()) throw error(Exit::kUsage, "layer '{}': {}", layer.name, obstacle);
  layer.bits = layer.bits <= 4 || form == PackedForm::kAwq ? 4 : 8;
  while (layer.group_size > 0 && layer.inputs % layer.group_size != 0) --layer.group_size;
  stored.anew = GroupGrid{layer.bits, layer.group_size, layer.symmetric, true};
  stored.in_order = true;
}

// The layer as it is written.
IntGroup converted(const Stored& stored, const PackedReader& reader, bool packs) {
  IntGroup weight = reader.read(stored.layer.name);
  if (stored.anew) {
    const at::Tensor values = dequantize_rows(weight, 0, weight.codes.size(0));
    return in_layer(stored.layer.name, [&] { return round_to_groups(values, *stored.anew); });
  }
  if (packs && stored.scales == Scales::kNear) weight.scale = weight.scale.to(at::kHalf);
  return weight.bits < stored.layer.bits ? widened(weight, stored.layer.bits) : weight;
}

// A layer of one group as wide as the groups of the others has their size.
void unite_sizes(std::vector<Stored>& layers) {
  std::map<int64_t, size_t> uses;
  for (const Stored& stored : layers) {
    if (stored.layer.group_size > 0) ++uses[stored.layer.group_size];
  }
  if (uses.size() != 1) return;
  for (Stored& stored : layers) {
    if (stored.layer.inputs == uses.begin()->first) stored.layer.group_size = stored.layer.inputs;
  }
}

void check_awq(const PackedFolder& folder, const std::string& model) {
  for (const PackedLayer& layer : folder.layers) {
    if (layer.group_size != folder.group_size)
      throw error(
          Exit::kUsage,
          "--format awq has one group size for all layers, and '{}' has {} and {}; use --format gptq or "
          "compressed-tensors",
          model, folder.group_size, layer.group_size);
  }
  if (folder.head)
    throw error(Exit::kUsage, "--format awq has no output layer, which '{}' has packed; use --format gptq",
                model);
}

Plan plan_conversion(const CheckpointFiles& checkpoint, const PackedReader& reader, PackedForm source,
                     const ConvertCommand& options) {
  const std::optional<DecoderConfig> config = language_config(options.model);
  if (config) Decoder(options.model, at::kFloat);  // whose tensors must be those of the configuration
  Plan plan;
  bool symmetric = true;
  for (const auto& [name, sizes] : reader.layers()) {
    check_interrupt();
    plan.layers.push_back(describe(source, name, reader.read(name)));
    const Stored& stored = plan.layers.back();
    symmetric = symmetric && (stored.layer.symmetric || stored.layer.embedding);
  }
  std::map<std::string, uint64_t> bytes;
  for (const Array& array : checkpoint.arrays) {
    if (reader.is_part(array.name)) bytes[array.name.substr(0, array.name.rfind('.'))] += array.bytes.size();
  }
  for (Stored& stored : plan.layers) stored.bytes = bytes[stored.layer.name];
  unite_sizes(plan.layers);
  PackedFolder& folder = plan.folder;
  folder.form = form_of(options.format, symmetric);
  folder.source_form = source;
  folder.symmetric = symmetric;
  folder.shard_bytes = options.shard_bytes;
  if (config) folder.head_name = config->names.head;
  for (Stored& stored : plan.layers) {
    if (!stored.layer.embedding) stored.layer.symmetric = symmetric;
    if (folder.form) widen(*folder.form, stored.layer);
    const std::string refusal = folder.form ? refusal_of(*folder.form, stored) : "";
    if (!refusal.empty() && options.allow_requantize) round_anew(*folder.form, stored);
    folder.layers.push_back(stored.layer);
    folder.act_order = folder.act_order || !stored.in_order;
    if (options.allow_requantize || !folder.form) continue;
    if (!refusal.empty())
      throw error(Exit::kUsage, "layer '{}': {}; or pass --allow-requantize, which rounds its values again",
                  stored.layer.name, refusal);
    if (stored.scales == Scales::kNear)
      throw error(Exit::kUsage,
                  "layer '{}': it has scales that float16, in which --format {} has them, has no number for; "
                  "use --format dequantized, or pass --allow-requantize, which rounds the scales",
                  stored.layer.name, name_of(*folder.form));
  }
  // Linear layers that are not packed must be named.
  for (const Array& array : checkpoint.arrays) {
    LayerKind kind{};
    if (!array.name.ends_with(".weight") || !guess_kind(array, kind) || kind != LayerKind::kLinear) continue;
    const std::string name = array.name.substr(0, array.name.rfind('.'));
    if (name != folder.head_name && !reader.is_part(array.name)) folder.kept.push_back(name);
  }
  finish_folder(config ? &*config : nullptr, folder);
  if (folder.form == PackedForm::kAwq) check_awq(folder, options.model);
  return plan;
}

// Layers that round their inputs too become plain ones, and nothing else.
void check_rounded_inputs(const ConvertCommand& options, Report& report) {
  if (options.format != "dequantized")
    throw error(Exit::kUsage,
                "layers of '{}' round their inputs to 8 bits, which --format {} has no place for; use "
                "--format dequantized, which leaves that out",
                options.model, options.format);
  warn_of_rounded_inputs(report);
}

LayerRecord record_of(const Stored& stored, const std::optional<PackedForm>& form) {
  LayerRecord record;
  record.name = stored.layer.name;
  record.kind = stored.layer.embedding ? "embedding" : "linear";
  record.decision = form ? fmt::format("int{}", stored.layer.bits) : "float32";
  if (stored.anew) {
    record.reason = "rounded again, since the format has no place for its codes";
  } else if (stored.scales == Scales::kNear && form) {
    record.reason = "its scales rounded to float16";
  }
  record.parameters = stored.layer.outputs * stored.layer.inputs;
  record.bytes_before = stored.bytes;
  record.bytes_after =
      form ? packed_bytes(*form, stored.layer) : 4 * static_cast<uint64_t>(*record.parameters);
  return record;
}

void convert(const ConvertCommand& options, const RunOptions& run, Report& report) {
  if (options.output.empty() && !options.dry_run)
    throw error(Exit::kUsage, "convert needs -o/--output, or --dry-run");
  check_not_stdout(options.output);
  if (options.format != "gguf" && options.type != ConvertCommand().type)
    throw error(Exit::kUsage, "--type goes with --format gguf");
  const ModelFormat format = detect_model(options.model);
  if (format == ModelFormat::kGguf) return convert_from_gguf(options, run, report);
  if (format != ModelFormat::kHuggingFace)
    throw error(Exit::kUsage, "'{}' is {}; convert takes the Hugging Face folder of a model, or GGUF",
                options.model, name_of(format));
  if (options.format == "gguf") return convert_to_gguf(options, run, report);
  if (!options.output.empty()) check_output(options.output, OutputKind::kFolder, run.force, run.inputs);
  BackgroundHash hash(options.model);
  if (!options.output.empty()) refuse_output_inside(options.output, options.model);
  const FolderQuantization quantization = read_quantization(options.model);
  const CheckpointFiles checkpoint =
      timed(report, "load", [&] { return read_checkpoint(options.model, format); });
  if (quantization.text.empty() && guess_form(checkpoint))
    throw bad_data("'{}' has packed layers, and its config.json has no quantization_config", options.model);
  if (quantization.text.empty())
    throw error(Exit::kUsage,
                "'{}' holds no packed layers (its weights are floating); round them with 'mcompress quantize "
                "--mode weight-only'",
                options.model);
  report.warnings = checkpoint.notes;
  if (!quantization.form) check_rounded_inputs(options, report);
  const PackedForm source = quantization.form.value_or(PackedForm::kPlainCodes);
  const PackedReader reader(checkpoint, source);
  if (reader.layers().empty()) throw bad_data("'{}' has no packed layer", options.model);
  const Plan plan =
      timed(report, "plan", [&] { return plan_conversion(checkpoint, reader, source, options); });
  announce_folder(checkpoint, options.model, name_of(source), plan.folder, hash, report);
  for (const Stored& stored : plan.layers) report.layers.push_back(record_of(stored, plan.folder.form));
  if (options.dry_run) return finish_dry_run(run, report);
  check_output(options.output, OutputKind::kFolder, run.force, run.inputs, *report.predicted_bytes);
  OutputFolder output(options.output, run.force);
  Progress progress("convert", static_cast<int64_t>(plan.layers.size()));
  const auto give = [&](const TakeLayer& take) {
    for (const Stored& stored : plan.layers) {
      take(stored.layer.name, converted(stored, reader, plan.folder.form.has_value()));
      progress.step();
    }
  };
  write_checked_folder(checkpoint, options.model, plan.folder, give, output, report);
  output.commit();
  describe_folder(options.output, plan.folder, report);
}

}  // namespace

Command convert_command() {
  auto options = std::make_shared<ConvertCommand>();
  const auto add_options = [options](CLI::App& app) {
    app.add_option("model,-m,--model", options->model,
                   "Hugging Face folder of GPTQ, AWQ, compressed-tensors or safetensors; for gguf any "
                   "language model's; or GGUF, for dequantized")
        ->required();
    app.add_option("-o,--output", options->output, "The folder to write, or for gguf the file");
    app.add_flag("--dry-run", options->dry_run, "Print what becomes of each layer, and stop");
    app.add_option("--format", options->format,
                   "gptq, awq or compressed-tensors: the same codes in another packing; safetensors: each in "
                   "a byte; dequantized: a folder in float32; gguf: one file for llama.cpp")
        ->required()
        ->check(CLI::IsMember({"gptq", "awq", "compressed-tensors", "safetensors", "dequantized", "gguf"}));
    app.add_option("--type", options->type, "Of the matrices of a GGUF file; norms and biases are F32")
        ->check(CLI::IsMember(gguf_type_names()));
    app.add_flag("--allow-requantize", options->allow_requantize,
                 "Round the values of layers again whose codes the format, or the type of GGUF, has no place "
                 "for, and scales to float16");
    add_shard_option(app, options->shard_bytes);
  };
  const auto run = [options](const RunOptions& r, Report& report) { convert(*options, r, report); };
  return {"convert",
          "Give a model another format: the codes of packed weights exactly, plain values, or GGUF",
          add_options, run};
}

}  // namespace mcompress::cli
