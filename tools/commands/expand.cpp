#include <memory>
#include <optional>

#include "compress_steps.h"
#include "mcompress/base/error.h"
#include "mcompress/base/output.h"
#include "mcompress/formats/bitmask.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/zstd.h"
#include "mcompress/model/program.h"
#include "models.h"

namespace mcompress::cli {

namespace {

struct Options {
  std::string model, output;
};

// Writes the dense form of the file at `stored`; false where it is not stored as a bitmask.
bool expand_file(const std::string& stored, const RunOptions& run, OutputFile& file) {
  const ModelFormat format = detect_model(stored);
  if (format == ModelFormat::kTorchScript) {
    const auto program = load_program(stored, run.trust_code);
    if (!make_dense(program)) return false;
    write_program(serialize_program(program), file);
    return true;
  }
  if (format != ModelFormat::kSafetensors) return false;
  const MappedFile map(stored);
  if (!is_bitmask(read_safetensors(map.bytes(), stored).metadata)) return false;
  expand_bitmask(map.bytes(), stored, file);
  return true;
}

// Messages about the file inside the frame name the frame.
void expand_packed(const MappedFile& input, const Options& options, const RunOptions& run, OutputFile& file) {
  const std::string what = fmt::format("'{}'", options.model);
  check_output(options.output, OutputKind::kFile, run.force, run.inputs,
               unpacked_zstd_bytes(input.bytes(), what));
  OutputFile unpacked(options.output + ".unpacked", true);
  unpack_zstd(
      input.bytes(), [&](Bytes bytes) { unpacked.write(bytes); }, what);
  try {
    if (!expand_file(unpacked.temporary(), run, file)) file.write(MappedFile(unpacked.temporary()).bytes());
  } catch (const Error& failure) {
    std::string text = failure.what();
    const size_t at = text.find(unpacked.temporary());
    if (at != std::string::npos) text.replace(at, unpacked.temporary().size(), options.model);
    throw Error(failure.code(), text);
  }
}

void expand(const Options& options, const RunOptions& run, Report& report) {
  check_not_stdout(options.output);
  check_output(options.output, OutputKind::kFile, run.force, run.inputs);
  BackgroundHash hash(options.model);
  const MappedFile input(options.model);
  const bool packed = looks_like_zstd(input.bytes());
  OutputFile file(options.output, run.force);
  timed(report, "expand", [&] {
    if (packed) return expand_packed(input, options, run, file);
    if (expand_file(options.model, run, file)) return;
    report.warnings.push_back(fmt::format("'{}' is dense already, so it is copied", options.model));
    file.write(input.bytes());
  });
  const ModelFormat written = detect_model(file.temporary());
  const WeightCount count =
      timed(report, "reopen", [&] { return count_model(file.temporary(), written, run.trust_code); });
  file.commit();
  const bool program = written == ModelFormat::kTorchScript;
  report.input = describe_artifact(options.model,
                                   packed    ? "zstd"
                                   : program ? name_of(written)
                                             : "bitmask",
                                   count, hash);
  report.output = describe_artifact(options.output, name_of(written), count);
}

}  // namespace

Command expand_command() {
  auto options = std::make_shared<Options>();
  const auto add_options = [options](CLI::App& app) {
    app.add_option("model,-m,--model", options->model, "What 'prune --store' wrote")->required();
    app.add_option("-o,--output", options->output, "The dense file, in the format that was pruned")
        ->required();
  };
  const auto run = [options](const RunOptions& r, Report& report) { expand(*options, r, report); };
  return {"expand", "Give the dense file back from a bitmask", add_options, run};
}

}  // namespace mcompress::cli
