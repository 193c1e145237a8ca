#include <cmath>
#include <filesystem>
#include <numeric>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/progress.h"
#include "mcompress/model/pieces.h"
#include "mcompress/model/program.h"
#include "mcompress/report/sweep.h"
#include "prune.h"

namespace mcompress::cli {

namespace {

// Tries each sparsity of --sweep on the program and puts its weights back.
class Sweep {
 public:
  Sweep(const torch::jit::Module& program, const std::set<std::string>& layers, const ProgramWeights& chosen,
        const Dataset* data, const PruneCommand& options, uint64_t seed)
      : program_(program), chosen_(chosen), data_(data), options_(options), seed_(seed) {
    for (const at::Tensor& tensor : chosen.tensors) originals_.push_back(tensor.clone());
    dense_bytes_ = count_program_bytes(serialize_program(program));
    sparse_ = make_sparse(program, layers);  // which only changes how it is saved
    if (data_ != nullptr)
      reference_ = measure_accuracy(program_forward(program_), *data_, options_.eval.batch_size);
  }

  const std::optional<Accuracy>& reference() const { return reference_; }

  // One trial with some of the weights, all for an empty `layer`.
  SweepRow try_sparsity(double sparsity, const std::string& layer, const std::vector<size_t>& indices) {
    ProgramWeights part;
    for (const size_t index : indices) {
      part.weights.push_back(chosen_.weights[index]);
      part.tensors.push_back(chosen_.tensors[index]);
    }
    PruneCommand options = options_;
    options.sparsity = sparsity;
    prune_weights(part, options, seed_);
    SweepRow row{layer, sparsity, share_of_zeros(), {}, {}, dense_bytes_, dense_bytes_};
    if (data_ != nullptr) {
      const Accuracy accuracy = measure_accuracy(program_forward(program_), *data_, options_.eval.batch_size);
      row.top1 = accuracy.top1;
      row.agreement = agreement(*reference_, accuracy);
    }
    if (sparse_) row.stored_bytes = count_program_bytes(serialize_program(program_));
    for (const size_t index : indices) chosen_.tensors[index].copy_(originals_[index]);
    return row;
  }

 private:
  double share_of_zeros() const {
    ElementCount all;
    for (const at::Tensor& tensor : chosen_.tensors) {
      const ElementCount count = count_elements_of(tensor);
      all.elements += count.elements;
      all.nonzeros += count.nonzeros;
    }
    return static_cast<double>(all.elements - all.nonzeros) / static_cast<double>(all.elements);
  }

  const torch::jit::Module& program_;
  const ProgramWeights& chosen_;
  const Dataset* data_;
  const PruneCommand& options_;
  uint64_t seed_;
  std::vector<at::Tensor> originals_;
  std::optional<Accuracy> reference_;
  uint64_t dense_bytes_ = 0;
  bool sparse_ = false;
};

void run_sweep(Sweep& sweep, const ProgramWeights& chosen, const PruneCommand& options, Report& report) {
  const std::vector<double> sparsities = read_sweep(options.sweep);
  std::vector<size_t> all(chosen.weights.size());
  std::iota(all.begin(), all.end(), 0);
  const size_t trials = sparsities.size() * (options.per_layer ? 1 + all.size() : 1);
  Progress progress("sweep", static_cast<int64_t>(trials));
  const auto try_all = [&](const std::string& layer, const std::vector<size_t>& indices) {
    for (const double sparsity : sparsities) {
      report.sweep.push_back(sweep.try_sparsity(sparsity, layer, indices));
      progress.step();
    }
  };
  try_all("", all);
  if (!options.per_layer) return;
  for (const size_t index : all) try_all(chosen.weights[index].name, {index});
}

void write_page(const PruneCommand& options, const RunOptions& run, const Report& report) {
  if (options.training.html.empty()) return;
  const std::string page = sweep_page(report.sweep, std::filesystem::path(options.model).filename().string());
  OutputFile file(options.training.html, run.force);
  file.write(std::as_bytes(std::span(page)));
  file.commit();
}

}  // namespace

std::vector<double> read_sweep(const std::string& text) {
  std::vector<double> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(':', begin), text.size());
    parts.push_back(fraction_of(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  constexpr double kMaxSteps = 1000, kSlack = 1e-9, kDigits = 1e12;  // 0.1 + 2 * 0.1 is 0.3
  const double steps =
      parts.size() != 3 || parts[2] <= 0 ? -1 : std::floor((parts[1] - parts[0]) / parts[2] + kSlack);
  if (!(steps >= 0 && steps <= kMaxSteps))
    throw error(Exit::kUsage, "--sweep '{}' is not FROM:TO:STEP, such as 0.1:0.9:0.1", text);
  std::vector<double> sparsities;
  for (int i = 0; i <= static_cast<int>(steps); ++i)
    sparsities.push_back(std::min(1.0, std::round((parts[0] + i * parts[2]) * kDigits) / kDigits));
  return sparsities;
}

void sweep_program(const torch::jit::Module& program, const std::set<std::string>& layers,
                   const ProgramWeights& chosen, const Dataset* data, const PruneCommand& options,
                   const RunOptions& run, Report& report) {
  Sweep sweep(program, layers, chosen, data, options, static_cast<uint64_t>(run.seed));
  timed(report, "sweep", [&] { run_sweep(sweep, chosen, options, report); });
  if (sweep.reference()) report.before.emplace().accuracy = sweep.reference();
  write_page(options, run, report);
}

}  // namespace mcompress::cli
