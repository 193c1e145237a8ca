#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "convert.h"
#include "mcompress/base/output.h"
#include "mcompress/data/tokenizer.h"
#include "mcompress/formats/gguf.h"
#include "mcompress/model/gguf_import.h"
#include "models.h"

namespace mcompress::cli {

namespace {

FolderTexts texts_of(const GgufFile& gguf, const std::string& path, const DecoderConfig& config,
                     Report& report) {
  FolderTexts texts = folder_tokenizer(gguf, path);
  nlohmann::ordered_json json = config_json(config);
  for (const auto& [key, of_gguf] :
       {std::pair("bos_token_id", "bos_token_id"), std::pair("eos_token_id", "eos_token_id"),
        std::pair("pad_token_id", "padding_token_id")}) {
    const std::string name = std::string("tokenizer.ggml.") + of_gguf;
    const auto* id = find_value<int64_t>(gguf, name);
    if (id != nullptr && *id >= 0 && *id < config.vocabulary) {
      json[key] = *id;
    } else if (gguf.metadata.contains(name)) {
      report.warnings.push_back(
          fmt::format("key '{}' is no number from 0 to {}, and config.json goes without '{}'", name,
                      config.vocabulary - 1, key));
    }
  }
  texts["config.json"] = json.dump(2) + "\n";
  return texts;
}

}  // namespace

void convert_from_gguf(const ConvertCommand& options, const RunOptions& run, Report& report) {
  if (options.format != "dequantized")
    throw error(Exit::kUsage,
                "'{}' is GGUF, which converts to a Hugging Face folder only: pass --format dequantized, and "
                "quantize that",
                options.model);
  if (!options.output.empty()) {
    check_output(options.output, OutputKind::kFolder, run.force, run.inputs);
    refuse_output_inside(options.output, options.model);
  }
  BackgroundHash hash(options.model);
  const Decoder model = timed(report, "load", [&] { return Decoder(options.model, at::kFloat); });
  const DecoderConfig config = folder_config(model.config());
  const MappedFile file(options.model);
  const GgufFile gguf = read_gguf(file.bytes(), options.model);
  const FolderTexts texts =
      timed(report, "read tokenizer", [&] { return texts_of(gguf, options.model, model.config(), report); });
  for (const GgufPlace& place : gguf_places(config)) {
    if (place.shape.size() < 2) continue;
    LayerRecord record;
    record.name = place.source.substr(0, place.source.rfind('.'));
    record.kind = place.name.ends_with("_embd.weight") ? "embedding" : "linear";
    record.decision = "float32";
    record.parameters = place.shape[0] * place.shape[1];
    record.bytes_before = find_tensor(gguf, place.name)->bytes.size();
    record.bytes_after = 4 * static_cast<uint64_t>(*record.parameters);
    report.layers.push_back(std::move(record));
  }
  report.predicted_bytes = predict_folder_bytes(config, texts, options.shard_bytes);
  report.input =
      describe_artifact(options.model, name_of(ModelFormat::kGguf), count_gguf(options.model), hash);
  if (options.dry_run) return finish_dry_run(run, report);
  check_output(options.output, OutputKind::kFolder, run.force, run.inputs, *report.predicted_bytes);
  OutputFolder output(options.output, run.force);
  timed(report, "write", [&] { write_folder(model, config, texts, options.shard_bytes, output); });
  reopen(report, [&] {
    load_tokenizer(output.temporary());
    return Decoder(output.temporary(), at::kFloat);
  });
  output.commit();
  report.output =
      describe_artifact(options.output, name_of(ModelFormat::kHuggingFace),
                        count_checkpoint(read_checkpoint(options.output, ModelFormat::kHuggingFace)));
}

}  // namespace mcompress::cli
