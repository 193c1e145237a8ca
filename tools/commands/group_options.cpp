#include "group_options.h"

#include <fmt/format.h>

#include "mcompress/base/error.h"

namespace mcompress::cli {

void add_group_options(CLI::App& app, GroupOptions& options, const std::string& group) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(group);
  };
  const auto add_switch = [&](const char* names, bool& value, const char* help) {
    app.add_flag(names, value, help)->group(group)->default_str(value ? "true" : "false");
  };
  add("--bits", options.bits, "Bits of a weight")->check(CLI::Range(2, 8));
  add("--group-size", options.group_size, "Input features that share a scale; -1: all of a layer")
      ->check([](const std::string& text) {
        int64_t size = 0;
        const bool fine =
            CLI::detail::lexical_cast(text, size) && (size == -1 || (size > 0 && size <= kLargestGroup));
        return fine ? std::string() : fmt::format("'{}' is neither -1 nor from 1 to {}", text, kLargestGroup);
      });
  add("--group-size-fallback", options.group_size_fallback,
      "Where the group size does not divide the inputs of a layer. error: stop; adjust: take the half, or "
      "the half of that; tail: the last group is smaller, which vLLM does not read; ignore: leave the layer "
      "alone")
      ->check(CLI::IsMember({"error", "adjust", "tail", "ignore"}));
  add_switch("--sym,!--asym", options.symmetric,
             "Symmetric grids, which every reader takes; --asym: with zero points, more exact");
  add_switch("--mse,!--no-mse", options.search, "Search the scale of each group that loses least");
  add("--layer-config", options.layer_configs,
      "RE=bits:8,group:64 for layers whose name matches; of several the last; repeatable")
      ->allow_extra_args(false);
  app.add_flag("--lm-head", options.head, "Round the output layer too, where it is not the embedding")
      ->group(group);
  add("--format", options.format,
      "What to write of a folder. gptq: as GPTQModel, transformers and vLLM read it (with --asym gptq_v2); "
      "awq: as AutoAWQ, transformers and vLLM do; compressed-tensors: as transformers and vLLM do; "
      "safetensors: each code in a byte, with scales and zero points beside it; dequantized: a plain folder "
      "with the values that the codes stand for. Of TorchScript: torchscript")
      ->check([](const std::string& name) {
        return name != "gguf" ? std::string()
                              : "gguf is written by 'mcompress convert --format gguf', of the folder that "
                                "this command makes; --type Q4_0 keeps symmetric codes of 4 bits";
      })
      ->check(CLI::IsMember(
          {"gptq", "awq", "compressed-tensors", "safetensors", "dequantized", kTorchScriptFormat}))
      ->default_str(options.folder_format);
  add_shard_option(app, options.shard_bytes)->group(group);
}

// Alone it means 8 bits.
CLI::Option* add_embeddings_option(CLI::App& app, int64_t& bits, const std::string& help) {
  return app.add_flag("--embeddings{8}", bits, help)
      ->type_size(1)
      ->expected(0, 1)
      ->transform(
          CLI::Transformer(std::map<std::string, std::string>{{"false", "0"}, {"true", "8"}, {"1", "8"}}))
      ->check(CLI::IsMember({0, 4, 8}));
}

CLI::Option* add_shard_option(CLI::App& app, uint64_t& bytes) {
  return app.add_option("--max-shard-size", bytes, "Largest file of tensors, such as 5GB")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::Range(uint64_t{1} << 14, uint64_t{1} << 50));
}

void refuse_group_options(const GroupOptions& options, const std::string& what) {
  const GroupOptions plain;
  const std::map<std::string, bool> used = {
      {"--bits", options.bits != plain.bits},
      {"--group-size", options.group_size != plain.group_size},
      {"--group-size-fallback", options.group_size_fallback != plain.group_size_fallback},
      {"--asym", options.symmetric != plain.symmetric},
      {"--no-mse", options.search != plain.search},
      {"--lm-head", options.head},
      {"--layer-config", !options.layer_configs.empty()},
      {"--format", !options.format.empty()},
      {"--max-shard-size", options.shard_bytes != plain.shard_bytes}};
  for (const auto& [name, given] : used) {
    if (given) throw error(Exit::kUsage, "{} goes with {}", name, what);
  }
}

std::optional<PackedForm> form_of(const std::string& format, bool symmetric) {
  if (format == "gptq") return symmetric ? PackedForm::kGptq : PackedForm::kGptqV2;
  if (format == "awq") return PackedForm::kAwq;
  if (format == "compressed-tensors") return PackedForm::kCompressedTensors;
  if (format == "safetensors") return PackedForm::kPlainCodes;
  return std::nullopt;
}

std::optional<PackedForm> form_of(const GroupOptions& options) {
  return form_of(folder_format(options), options.symmetric);
}

const std::string& folder_format(const GroupOptions& options) {
  return options.format.empty() ? options.folder_format : options.format;
}

}  // namespace mcompress::cli
