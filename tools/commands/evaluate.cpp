#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/script.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/model/program.h"
#include "run.h"

namespace mcompress::cli {

Command evaluate_command() {
  struct Arguments {
    std::string model;
    DataArguments data;
    RunArguments run;
  };
  auto arguments = std::make_shared<Arguments>();
  const auto add_options = [arguments](CLI::App& app) {
    app.add_option("model,-m,--model", arguments->model, "TorchScript model to measure")->required();
    add_data_options(app, arguments->data);
    app.get_option("--eval-data")->required();
    add_run_options(app, arguments->run);
  };
  const auto run = [arguments] {
    apply(arguments->run);
    check_report(arguments->run);
    const Images images = load_images(arguments->data.path, arguments->data.options);
    const ModelFormat format = detect_model(arguments->model);
    if (format != ModelFormat::kTorchScript) {
      throw bad_data("'{}' holds weights without a program, so it cannot be run; pass TorchScript",
                     arguments->model);
    }
    torch::jit::Module program = load_program(arguments->model, arguments->run.trust_code);
    const Accuracy accuracy = measure_accuracy(program_forward(program), images, arguments->data.batch_size);
    if (arguments->run.report != "-") {
      const Interval interval = wilson_interval(accuracy.top1);
      fmt::print("top-1 {:.2f} % [{:.2f}, {:.2f}], top-5 {:.2f} %, loss {:.4f}, {:.0f} samples/s\n",
                 100 * accuracy.top1.value(), 100 * interval.low, 100 * interval.high,
                 100 * accuracy.top5.value(), accuracy.loss,
                 static_cast<double>(images.size()) / accuracy.seconds);
    }
    write_report({{"input", describe_file(arguments->model)}, {"metrics", to_json(accuracy)}}, "evaluate",
                 arguments->run);
    return 0;
  };
  return {"evaluate", "Measure accuracy and speed of a model", add_options, run};
}

}  // namespace mcompress::cli
