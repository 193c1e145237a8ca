#include "packed_run.h"

#include <algorithm>
#include <map>

#include <ATen/ATen.h>

#include "mcompress/base/interrupt.h"
#include "mcompress/base/process.h"
#include "mcompress/base/sha256.h"
#include "mcompress/model/pieces.h"

namespace mcompress::cli {

namespace {

void warn_of_readers(const PackedFolder& folder, Report& report) {
  if (folder.form == PackedForm::kCompressedTensors) {
    const auto any = [&](const auto& test) {
      return std::any_of(folder.layers.begin(), folder.layers.end(), test);
    };
    if (any([](const PackedLayer& layer) { return layer.bits != 4 && layer.bits != 8; }))
      report.warnings.emplace_back(
          "compressed-tensors packs widths other than 4 and 8 bits in this way since 0.18, and vLLM reads "
          "none of them");
    if (any([](const PackedLayer& layer) { return layer.embedding; }))
      report.warnings.emplace_back(
          "transformers reads 8-bit embeddings beside packed layers as it does by default, and not with "
          "dequantize=True, which takes all layers for those of the first group");
  }
  const bool asymmetric = folder.form == PackedForm::kGptqV2;
  if (!folder.form || !is_gptq(*folder.form)) return;
  if (asymmetric)
    report.warnings.emplace_back(
        "zero points are written as gptq_v2, which GPTQModel, transformers and SGLang read, and AutoGPTQ and "
        "newer vLLM do not; --sym is read by all");
  if (folder.parts.empty() && !folder.kept.empty())
    report.warnings.emplace_back(
        "layers are left alone in some blocks only, which GPTQModel and vLLM read, and transformers does "
        "not");
  const bool tail = std::any_of(folder.layers.begin(), folder.layers.end(), [](const PackedLayer& layer) {
    return layer.group_size > 0 && layer.inputs > layer.group_size && layer.inputs % layer.group_size != 0;
  });
  if (tail)
    report.warnings.emplace_back("groups that do not divide the inputs are read by GPTQModel, not by vLLM");
}

void check_transposed(const PackedFolder& folder, const std::string& model) {
  if (folder.transposed && folder.form && !is_gptq(*folder.form))
    throw error(Exit::kUsage,
                "--format {}: its readers know no Conv1D layers, which '{}' has; use gptq or dequantized",
                name_of(*folder.form), model);
}

// Of codes and zero points less the middle, since those that are not packed are read in 4 or 8 bits; in
// bytes, which wrap.
std::string digest_of(const IntGroup& weight) {
  const int middle = 1 << (weight.bits - 1);
  std::string digest;
  for (const at::Tensor& part :
       {weight.codes.sub(middle), weight.scale, weight.zero.sub(middle), weight.groups})
    digest += sha256_of(bytes_of(part.contiguous()));
  return digest;
}

// Freed memory is not all used again, and piles up; after each layer it would take a fifth of the time.
void give_back_now_and_then(size_t layers) {
  constexpr size_t kEvery = 16;
  if (layers % kEvery == 0) give_back_freed_memory();
}

}  // namespace

void announce_folder(const CheckpointFiles& checkpoint, const std::string& model, const std::string& format,
                     const PackedFolder& folder, const BackgroundHash& hash, Report& report) {
  check_transposed(folder, model);
  warn_of_readers(folder, report);
  // A plain folder is as large as the one that it was made of, but where that was packed.
  const bool same = !folder.form && !folder.source_form;
  report.predicted_bytes =
      same ? bytes_on_disk(model) : predict_packed_folder_bytes(checkpoint, model, folder);
  report.input = describe_artifact(model, format, count_checkpoint(checkpoint), hash);
}

void write_checked_folder(const CheckpointFiles& checkpoint, const std::string& model,
                          const PackedFolder& folder, const std::function<void(const TakeLayer& take)>& give,
                          OutputFolder& output, Report& report) {
  std::map<std::string, std::string> digests;
  timed(report, "write", [&] {
    write_packed_folder(
        checkpoint, model, folder,
        [&](const TakeLayer& take) {
          give([&](const std::string& name, const IntGroup& weight) {
            digests[name] = digest_of(weight);
            take(name, weight);
            give_back_now_and_then(digests.size());
          });
        },
        output);
  });
  const CheckpointFiles written =
      reopen(report, [&] { return read_checkpoint(output.temporary(), ModelFormat::kHuggingFace); });
  if (!folder.form) return;
  timed(report, "verify", [&] {
    const PackedReader reader(written, *folder.form);
    size_t count = 0;
    for (const auto& [layer, digest] : digests) {
      check_interrupt();
      if (digest_of(reader.read(layer)) != digest)
        throw error(Exit::kInternal,
                    "internal error: layer '{}' is not read as it was written; please report it", layer);
      give_back_now_and_then(++count);
    }
  });
}

void describe_folder(const std::string& output, const PackedFolder& folder, Report& report) {
  report.output =
      describe_artifact(output, folder.form ? name_of(*folder.form) : name_of(ModelFormat::kHuggingFace),
                        {report.input->parameters, {}});
}

}  // namespace mcompress::cli
