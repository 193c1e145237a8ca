#pragma once

#include <future>
#include <string>
#include <thread>
#include <vector>

#include <torch/script.h>

#include "mcompress/data/dataset.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/report/report.h"

namespace mcompress::cli {

// The program at a path as it computes: where it was stored as a bitmask, it is dense again.
torch::jit::Module load_dense(const std::string& path, bool trust_code);

// Weights of a model: how many, and how many are not zero, which codes in groups do not tell.
struct WeightCount {
  int64_t parameters = 0;
  std::optional<int64_t> nonzeros = 0;
};
WeightCount count_program(const torch::jit::Module& program);
WeightCount count_checkpoint(const CheckpointFiles& checkpoint);
WeightCount count_gguf(const std::string& path);
WeightCount count_model(const std::string& path, ModelFormat format, bool trust_code);

// Bytes of a file, or of all files of a folder.
uint64_t bytes_on_disk(const std::string& path);

// The model at `path` as the report shows it.
Artifact describe_artifact(const std::string& path, const std::string& format, const WeightCount& count);

// The SHA-256 of a file or folder, made beside other work; given up where that ends early.
class BackgroundHash {
 public:
  explicit BackgroundHash(const std::string& path);
  std::string get() const { return result_.get(); }

 private:
  std::shared_future<std::string> result_;
  std::jthread worker_;
};
Artifact describe_artifact(const std::string& path, const std::string& format, const WeightCount& count,
                           const BackgroundHash& hash);

// Accuracy of each program on all data, and latency on its first batch, the programs taking turns.
std::vector<Metrics> measure_programs(const std::vector<torch::jit::Module>& programs, const Dataset& data,
                                      int64_t batch_size);

}  // namespace mcompress::cli
