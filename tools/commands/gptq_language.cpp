#include <algorithm>
#include <cmath>
#include <filesystem>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "gptq.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/output.h"
#include "mcompress/methods/decoder_gptq.h"
#include "mcompress/methods/hessian.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/decoder.h"
#include "mcompress/model/gptq_folder.h"
#include "mcompress/report/version.h"
#include "models.h"
#include "resume.h"

namespace mcompress::cli {

namespace {

at::ScalarType compute_type(const GptqCommand& options) {
  const bool narrow =
      options.calib_compute == "auto" ? multiplies_bfloat16() : options.calib_compute == "bf16";
  return narrow ? at::kBFloat16 : at::kFloat;
}

// The model and what becomes of its layers.
struct LanguagePlan {
  std::vector<GroupedLayer> layers;
  std::vector<Decision> decisions;  // the same, then embedding and head
  std::map<std::string, GroupGrid> grids;
};

LanguagePlan plan_language(const DecoderConfig& config, const CheckpointFiles& checkpoint,
                           const GptqCommand& options) {
  LanguagePlan plan;
  std::map<std::string, const Array*> arrays;
  for (const Array& array : checkpoint.arrays) arrays[array.name] = &array;
  const auto add = [&](const std::string& name, LayerKind kind, const std::string& obstacle) {
    const Array& array = *arrays.at(name + ".weight");
    plan.decisions.push_back(
        {name, kind, obstacle, {array.bytes.data(), array.shape, array.strides}, array.bytes.size()});
  };
  const auto add_linear = [&](const DecoderLayer& layer, std::string obstacle) {
    plan.layers.push_back({layer.name, layer.outputs, layer.inputs});
    if (options.format == "gptq" && obstacle.empty())
      obstacle = gptq_obstacle(layer.outputs, layer.inputs, static_cast<int>(options.bits));
    add(layer.name, LayerKind::kLinear, obstacle);
  };
  for (int64_t block = 0; block < config.blocks; ++block) {
    for (const auto& stage : stages_of(config, block)) {
      for (const DecoderLayer& layer : stage) add_linear(layer, "");
    }
  }
  add(config.names.base + config.names.embedding, LayerKind::kEmbedding, "the embedding is left alone");
  if (config.tied_head && options.head)
    throw error(Exit::kUsage, "--lm-head: the output layer of '{}' is its embedding, which is left alone",
                options.model);
  if (!config.tied_head)
    add_linear({config.names.head, config.vocabulary, config.width, false},
               options.head ? "" : "the output layer is left alone without --lm-head");
  decide_all(plan.decisions, options, [](LayerKind) { return std::string(); });
  plan.grids = choose_grids(options, plan.layers, plan.decisions);
  if (plan.grids.empty()) throw bad_data("'{}' has no layer left to round", options.model);
  return plan;
}

int64_t groups_of(int64_t inputs, int64_t group_size) {
  return group_size < 0 || group_size >= inputs ? 1 : (inputs + group_size - 1) / group_size;
}

GptqLayer gptq_layer(const GroupedLayer& layer, const GroupGrid& grid) {
  return {layer.name, layer.outputs,  layer.inputs, groups_of(layer.inputs, grid.group_size),
          grid.bits,  grid.group_size};
}

// The layers of a block that are rounded, by stage, where some are left alone and the same ones in every
// block.
std::vector<std::vector<std::string>> uniform_parts(const LanguagePlan& plan, const DecoderConfig& config) {
  std::vector<std::vector<std::string>> parts;
  bool some_left = false;
  for (int64_t block = 0; block < config.blocks; ++block) {
    std::vector<std::vector<std::string>> here;
    for (const auto& stage : stages_of(config, block)) {
      here.emplace_back();
      for (const DecoderLayer& layer : stage) {
        const bool rounded = plan.grids.contains(layer.name);
        some_left = some_left || !rounded;
        if (rounded) here.back().push_back(layer.name.substr(config.block_name(block).size()));
      }
      if (here.back().empty()) here.pop_back();
    }
    if (block > 0 && here != parts) return {};
    parts = std::move(here);
  }
  return some_left ? parts : std::vector<std::vector<std::string>>();
}

GptqFolder folder_of(const LanguagePlan& plan, const DecoderConfig& config, const GptqCommand& options) {
  GptqFolder folder;
  std::map<std::pair<int, int64_t>, size_t> uses;  // of bits and group sizes
  for (const GroupedLayer& layer : plan.layers) {
    const auto grid = plan.grids.find(layer.name);
    if (grid == plan.grids.end()) {
      if (layer.name != config.names.head) folder.kept.push_back(layer.name);
      continue;
    }
    folder.layers.push_back(gptq_layer(layer, grid->second));
    ++uses[{grid->second.bits, grid->second.group_size}];
  }
  folder.parts = uniform_parts(plan, config);
  // What most layers have is the configuration's own.
  const auto most = std::max_element(uses.begin(), uses.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  folder.bits = most->first.first;
  folder.group_size = most->first.second;
  folder.symmetric = options.symmetric;
  folder.act_order = options.act_order;
  folder.static_groups = options.static_groups;
  folder.true_sequential = options.true_sequential;
  folder.head = plan.grids.contains(config.names.head);
  folder.damping = options.damping;
  folder.zeros = options.symmetric ? GptqZeros::kLessOne : GptqZeros::kPlain;
  folder.shard_bytes = options.shard_bytes;
  folder.version = kVersion;
  return folder;
}

// Which layers are rounded and how, which the format has a say in.
std::string text_of(const std::map<std::string, GroupGrid>& grids) {
  std::string text;
  for (const auto& [name, grid] : grids) text += fmt::format("{} {} {}\n", name, grid.bits, grid.group_size);
  return text;
}

// Of the file; random tokens are told by the seed, which is a setting.
std::string hash_of_text(const std::string& path) {
  return std::filesystem::exists(path) ? hash_of_data(path) : path;
}

// What would stop the run late: weights that are not finite, and values that GPTQ's format has no number for.
void check_values(const CheckpointFiles& checkpoint, const LanguagePlan& plan, const GptqCommand& options) {
  constexpr double kLargestHalf = 65504;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const Array& array = checkpoint.arrays[i];
    const bool rounded =
        array.name.ends_with(".weight") && plan.grids.contains(array.name.substr(0, array.name.rfind('.')));
    if (!is_floating(array.dtype) || array.bytes.empty() || (!rounded && options.format != "gptq")) continue;
    check_interrupt();
    const at::Tensor values = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
    const double largest = std::max(values.max().item<double>(), -values.min().item<double>());
    checkpoint.files[checkpoint.file_of[i]]->drop(array.bytes);
    if (rounded && !std::isfinite(largest))
      throw bad_data("tensor '{}' holds NaN or infinity; repair the model or leave it out with --ignore",
                     array.name);
    if (!rounded && !(largest <= kLargestHalf))
      throw bad_data(
          "tensor '{}' has values beyond float16, in which GPTQ's readers compute; use --format dequantized",
          array.name);
  }
}

// Windows of --calib-data.
at::Tensor read_calibration_text(const GptqCommand& options, const DecoderConfig& config,
                                 const RunOptions& run, Report& report) {
  TextCommand text;
  text.layout = options.calib_layout;
  text.field = options.text.field;
  text.seqlen = options.seqlen;
  const TokenWindows windows = timed(report, "read calibration data", [&] {
    return read_windows(options.model, text, options.calib_data, options.nsamples, config, run);
  });
  const int64_t count = windows.ids.size(0);
  if (count < options.nsamples)
    report.warnings.push_back(fmt::format("'{}' has {} samples of {} tokens, and --nsamples asks for {}",
                                          options.calib_data, count, options.seqlen, options.nsamples));
  if (windows.ids.min().item<int64_t>() == windows.ids.max().item<int64_t>())
    throw bad_data("'{}' is one token again and again, {}, which tells nothing about the model's inputs",
                   options.calib_data, windows.ids[0][0].item<int64_t>());
  return windows.ids;
}

// The layers of blocks as they lie in the checkpoint of a run, the last block that was asked for at hand.
class RoundedLayers {
 public:
  RoundedLayers(std::string folder, const DecoderConfig& config) : folder_(std::move(folder)) {
    for (int64_t block = 0; block < config.blocks; ++block) {
      for (const auto& stage : stages_of(config, block)) {
        for (const DecoderLayer& layer : stage) block_of_[layer.name] = block;
      }
    }
    block_of_[config.names.head] = config.blocks;
  }

  const IntGroup& operator[](const std::string& layer) {
    const int64_t block = block_of_.at(layer);
    if (block != held_) {
      layers_.clear();
      for (RoundedLayer& read : read_rounded_block(folder_, block))
        layers_[read.name] = std::move(read.weight);
      held_ = block;
    }
    return layers_.at(layer);
  }

 private:
  std::string folder_;
  std::map<std::string, int64_t> block_of_;
  int64_t held_ = -1;
  std::map<std::string, IntGroup> layers_;
};

// The values that the codes stand for, in the type in which the array was stored.
std::map<size_t, EditRows> dense_edits(const CheckpointFiles& checkpoint, const LanguagePlan& plan,
                                       const DecoderConfig& config, RoundedLayers& rounded) {
  std::map<size_t, EditRows> edits;
  for (size_t i = 0; i < checkpoint.arrays.size(); ++i) {
    const std::string& name = checkpoint.arrays[i].name;
    if (!name.ends_with(".weight")) continue;
    const std::string layer = name.substr(0, name.rfind('.'));
    if (!plan.grids.contains(layer)) continue;
    const bool transposed = config.transposed && layer != config.names.head;
    edits[i] = [layer, transposed, &rounded](const at::Tensor& rows, int64_t begin, int64_t end) {
      const IntGroup& weight = rounded[layer];
      const at::Tensor values =
          transposed ? dequantize_rows(weight, 0, weight.codes.size(0)).slice(1, begin, end).t()
                     : dequantize_rows(weight, begin, end);
      return values.to(rows.scalar_type());
    };
  }
  return edits;
}

// The file must give back what was put into it.
void check_written(const Decoder& written, const LanguagePlan& plan, RoundedLayers& rounded, Report& report) {
  timed(report, "verify", [&] {
    for (const GroupedLayer& layer : plan.layers) {
      if (!plan.grids.contains(layer.name)) continue;
      check_interrupt();
      if (!written.layer_weight(layer.name).equal(dequantize_rows(rounded[layer.name], 0, layer.outputs)))
        throw error(Exit::kInternal,
                    "internal error: layer '{}' is not read as it was written; please report it", layer.name);
    }
  });
}

void write_output(const GptqCommand& options, const RunOptions& run, const CheckpointFiles& checkpoint,
                  const LanguagePlan& plan, const DecoderConfig& config, const std::string& state,
                  Report& report) {
  RoundedLayers rounded(state, config);
  OutputFolder output(options.output, run.force);
  timed(report, "write", [&] {
    if (options.format == "dequantized") {
      write_edited_folder(checkpoint, options.model, dense_edits(checkpoint, plan, config, rounded), output);
      return;
    }
    write_gptq_folder(
        checkpoint, options.model, folder_of(plan, config, options),
        [&](const TakeLayer& take) {
          for (const GroupedLayer& layer : plan.layers) {
            if (plan.grids.contains(layer.name)) take(layer.name, rounded[layer.name]);
          }
        },
        output);
  });
  const Decoder written = reopen(report, [&] { return Decoder(output.temporary(), at::kFloat); });
  if (options.format == "gptq") check_written(written, plan, rounded, report);
  output.commit();
}

void add_records(const LanguagePlan& plan, const GptqCommand& options, const DecoderConfig& config,
                 const std::string& state, Report& report) {
  std::map<std::string, RoundedLayer> done;
  if (!state.empty()) {
    const bool head = plan.grids.contains(config.names.head);
    for (int64_t block = 0; block < config.blocks + (head ? 1 : 0); ++block) {
      for (RoundedLayer& layer : read_rounded_block(state, block)) {
        layer.weight = {layer.weight.bits, {}, {}, {}, {}};  // a whole model's weights are not held
        done[layer.name] = std::move(layer);
      }
    }
  }
  std::map<std::string, GptqLayer> layers;
  for (const GroupedLayer& layer : plan.layers) {
    if (plan.grids.contains(layer.name)) layers[layer.name] = gptq_layer(layer, plan.grids.at(layer.name));
  }
  for (const Decision& decision : plan.decisions) {
    const auto layer = layers.find(decision.name);
    if (layer == layers.end()) {
      report.layers.push_back(record_of(decision, "", 0));
      continue;
    }
    const GptqLayer& form = layer->second;
    const uint64_t bytes = gptq_bytes(form);
    LayerRecord record = record_of(decision, fmt::format("int{}", form.bits),
                                   options.format == "gptq" ? bytes : decision.bytes_before);
    record.parameters = form.outputs * form.inputs;
    report.calibration->weights += *record.parameters;
    report.calibration->bytes += bytes;
    if (const auto found = done.find(decision.name); found != done.end()) {
      const RoundedLayer& rounded = found->second;
      record.sqnr_db = rounded.sqnr_db;
      record.max_error = rounded.max_error;
      record.rounding = rounding_of(rounded, form.group_size);
    }
    report.layers.push_back(std::move(record));
  }
}

void warn_of_readers(const LanguagePlan& plan, const GptqFolder& folder, const GptqCommand& options,
                     Report& report) {
  if (options.format != "gptq") return;
  if (!options.symmetric)
    report.warnings.emplace_back(
        "zero points are written as gptq_v2, which GPTQModel, transformers and SGLang read, and AutoGPTQ and "
        "newer "
        "vLLM do not; --sym is read by all");
  if (folder.parts.empty() && !folder.kept.empty())
    report.warnings.emplace_back(
        "layers are left alone in some blocks only, which GPTQModel and vLLM read, and transformers does "
        "not");
  bool tail = false;
  for (const GroupedLayer& layer : plan.layers) {
    const auto grid = plan.grids.find(layer.name);
    tail = tail || (grid != plan.grids.end() && grid->second.group_size > 0 &&
                    layer.inputs % grid->second.group_size != 0);
  }
  if (tail)
    report.warnings.emplace_back("groups that do not divide the inputs are read by GPTQModel, not by vLLM");
}

}  // namespace

void gptq_language(const GptqCommand& options, const RunOptions& run, Report& report) {
  if (!options.output.empty()) check_output(options.output, OutputKind::kFolder, run.force, run.inputs);
  BackgroundHash hash(options.model);
  const CheckpointFiles checkpoint =
      timed(report, "load", [&] { return read_checkpoint(options.model, ModelFormat::kHuggingFace); });
  report.warnings = checkpoint.notes;
  const at::ScalarType compute = compute_type(options);
  const Decoder model = timed(report, "load model", [&] { return Decoder(options.model, compute); });
  const DecoderConfig& config = model.config();
  if (!config.quantization.empty())
    throw bad_data("'{}' is quantized already ({}); pass the model as it was before", options.model,
                   config.quantization);
  const LanguagePlan plan = plan_language(config, checkpoint, options);
  timed(report, "check weights", [&] { check_values(checkpoint, plan, options); });
  report.calibration.emplace();
  report.calibration->path = options.calib_data;
  report.calibration->compute = compute == at::kFloat ? "float32" : "bfloat16";
  at::Tensor ids;
  if (!options.calib_data.empty()) {
    ids = read_calibration_text(options, config, run, report);
    report.calibration->samples = ids.size(0);
    report.calibration->length = ids.size(1);
  }
  const auto text = open_text(options, ModelFormat::kHuggingFace, run, report);
  evaluate_input(options, report);
  warn_of_readers(plan, folder_of(plan, config, options), options, report);
  report.predicted_bytes =
      options.format == "gptq"
          ? predict_gptq_folder_bytes(checkpoint, options.model, folder_of(plan, config, options))
          : bytes_on_disk(options.model);
  report.input = describe_artifact(options.model, name_of(ModelFormat::kHuggingFace),
                                   count_checkpoint(checkpoint), hash);
  if (options.dry_run) {
    add_records(plan, options, config, "", report);
    return finish_dry_run(run, report);
  }
  // The output and, while the run lasts, a byte a weight.
  uint64_t state_bytes = 0;
  for (const GroupedLayer& layer : plan.layers)
    state_bytes += static_cast<uint64_t>(layer.outputs * layer.inputs);
  check_output(options.output, OutputKind::kFolder, run.force, run.inputs,
               *report.predicted_bytes + state_bytes);
  const CheckpointOptions state =
      open_checkpoint(options.output, OutputKind::kFolder, options.resume,
                      {hash.get(), hash_of_text(options.calib_data), text_of(plan.grids)}, run, report);
  warn_of_fresh_start(state, report);
  if (!options.resume) remove_rounded_blocks(state.path);
  const DecoderGptqPlan method = {method_options(options), plan.grids, options.true_sequential};
  report.calibration->blocks_kept =
      timed(report, "gptq", [&] { return gptq_decoder(model, ids, method, state); });
  write_output(options, run, checkpoint, plan, config, state.path, report);
  add_records(plan, options, config, state.path, report);
  remove_rounded_blocks(state.path);
  report.output = describe_artifact(options.output,
                                    options.format == "gptq" ? "gptq" : name_of(ModelFormat::kHuggingFace),
                                    {report.input->parameters, {}});
  if (text) text->compare(options.output, report);
  conclude(options, report);
}

}  // namespace mcompress::cli
