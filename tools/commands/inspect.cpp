#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/program.h"
#include "run.h"

namespace mcompress::cli {

namespace {

using nlohmann::ordered_json;

ordered_json inspect_program(const std::string& path, bool trust_code) {
  const torch::jit::Module program = load_program(path, trust_code);
  int64_t parameters = 0;
  for (const at::Tensor& parameter : program.parameters()) parameters += parameter.numel();
  ordered_json layers = ordered_json::array();
  for (const Layer& layer : list_layers(program)) {
    layers.push_back(
        {{"name", layer.name},
         {"kind", name_of(layer.kind)},
         {"shape", layer.weight.sizes().vec()},
         {"bytes", layer.weight.nbytes()},
         {"non_finite", layer.weight.numel() - layer.weight.isfinite().sum().item<int64_t>()},
         {"obstacle", layer.obstacle.empty() ? ordered_json(nullptr) : ordered_json(layer.obstacle)}});
  }
  return {{"format", "torchscript"}, {"parameters", parameters}, {"layers", layers}};
}

ordered_json inspect_checkpoint(const std::string& path, ModelFormat format) {
  const CheckpointFiles checkpoint = read_checkpoint(path, format);
  int64_t parameters = 0;
  ordered_json layers = ordered_json::array();
  for (const Array& array : checkpoint.arrays) {
    int64_t count = 1;
    for (const int64_t dimension : array.shape) count *= dimension;
    parameters += count;
    layers.push_back({{"name", array.name},
                      {"kind", name_of(array.dtype)},
                      {"shape", array.shape},
                      {"bytes", static_cast<uint64_t>(count) * size_of(array.dtype)}});
  }
  return {{"format", name_of(format)},
          {"parameters", parameters},
          {"layers", layers},
          {"notes", checkpoint.notes}};
}

void print_table(const ordered_json& result) {
  fmt::print("format {}, {} parameters\n", result["format"].get<std::string>(),
             result["parameters"].get<int64_t>());
  for (const auto& layer : result["layers"]) {
    fmt::print("{:<40} {:<10} {:<20} {:>12} bytes\n", layer["name"].get<std::string>(),
               layer["kind"].get<std::string>(), layer["shape"].dump(), layer["bytes"].get<uint64_t>());
  }
}

}  // namespace

Command inspect_command() {
  struct Arguments {
    std::string model;
    bool json = false, trust_code = false;
  };
  auto arguments = std::make_shared<Arguments>();
  const auto add_options = [arguments](CLI::App& app) {
    app.add_option("model,-m,--model", arguments->model, "Model to look at")->required();
    app.add_flag("--json", arguments->json, "Print JSON");
    app.add_flag("--trust-code", arguments->trust_code,
                 "Load a TorchScript file even though it reaches files");
  };
  const auto run = [arguments] {
    const ModelFormat format = detect_model(arguments->model);
    const ordered_json result = format == ModelFormat::kTorchScript
                                    ? inspect_program(arguments->model, arguments->trust_code)
                                    : inspect_checkpoint(arguments->model, format);
    if (arguments->json) {
      fmt::print("{}\n", result.dump(2));
    } else {
      print_table(result);
    }
    return 0;
  };
  return {"inspect", "List the layers of a model", add_options, run};
}

}  // namespace mcompress::cli
