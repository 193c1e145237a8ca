#include "mcompress/model/program.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>

#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/print_handler.h>
#include <torch/csrc/jit/runtime/profiling_graph_executor_impl.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/torchscript.h"
#include "mcompress/formats/zip.h"

namespace mcompress {

namespace {

// LibTorch reads the very bytes that were scanned.
class MapReader : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit MapReader(SharedFile file) : file_(std::move(file)) {}
  size_t size() const override { return file_->bytes().size(); }
  size_t read(uint64_t position, void* buffer, size_t count, const char* /*what*/) const override {
    const size_t left = position < size() ? size() - position : 0;
    count = std::min(count, left);
    std::memcpy(buffer, file_->bytes().data() + position, count);
    if (count >= kDropFrom) file_->drop(file_->bytes().first(position + count));
    return count;
  }

 private:
  static constexpr size_t kDropFrom = size_t{64} << 10;  // what was copied needs no pages of the map
  SharedFile file_;
};

}  // namespace

torch::jit::Module load_program(const std::string& path, bool trust_code) {
  auto file = std::make_shared<const MappedFile>(path);
  scan_torchscript(read_zip(file->bytes(), path), path, trust_code);
  file->drop(file->bytes());
  torch::jit::setPrintHandler([](const std::string& text) { std::fputs(text.c_str(), stderr); });
  // Without profiling the first calls are as fast as the later ones, and nothing is fused on CPU anyway.
  torch::jit::getProfilingMode() = false;
  torch::jit::setGraphExecutorOptimize(false);
  try {
    torch::jit::Module program = torch::jit::load(std::make_shared<MapReader>(std::move(file)));
    program.eval();
    return program;
  } catch (const c10::Error& failure) {
    throw bad_data("'{}' is not a TorchScript program that loads: {}", path,
                   failure.what_without_backtrace());
  } catch (const std::runtime_error& failure) {
    throw bad_data("'{}' is not a TorchScript program that loads: {}", path, failure.what());
  }
}

std::function<at::Tensor(const at::Tensor&)> program_forward(const torch::jit::Module& program) {
  return [program = torch::jit::Module(program)](const at::Tensor& input) mutable {
    const c10::InferenceMode guard;
    c10::IValue output;
    try {
      output = program.forward({input});
    } catch (const c10::Error& failure) {
      throw bad_data("the model fails on this data: {}", failure.what_without_backtrace());
    } catch (const std::runtime_error& failure) {
      throw bad_data("the model fails on this data: {}", failure.what());
    }
    if (!output.isTensor()) throw bad_data("the model returns a {} and not a tensor", output.tagKind());
    return output.toTensor();
  };
}

uint64_t predict_program_bytes(const std::string& path, const std::vector<Layer>& layers,
                               const std::map<std::string, CompressedWeight>& weights) {
  constexpr uint64_t kModuleSource =
      900;  // packed source and pickled attributes of one replaced layer's class
  const MappedFile file(path);
  uint64_t bytes = kModuleSource;
  for (const ZipEntry& entry : read_zip(file.bytes(), path)) {
    if (!entry.name.ends_with(".debug_pkl"))
      bytes += entry.data.size() + ZipWriter::overhead_bytes(entry.name);
  }
  std::set<const void*> seen;  // tied weights are stored once
  for (const Layer& layer : layers) {
    const auto weight = weights.find(layer.name);
    if (weight == weights.end() || !seen.insert(layer.weight.data_ptr()).second) continue;
    bytes += stored_bytes(weight->second) + ZipWriter::overhead_bytes("archive/data/00");
    bytes -= std::min<uint64_t>(bytes, layer.weight.nbytes());
  }
  return bytes;
}

void save_program(const torch::jit::Module& program, OutputFile& file) {
  std::string archive;
  torch::jit::ExportModule(program, [&archive](const void* data, size_t size) {
    archive.append(static_cast<const char*>(data), size);
    return size;
  });
  ZipWriter writer(file);
  for (const ZipEntry& entry : read_zip(std::as_bytes(std::span(archive)), "archive")) {
    if (entry.name.ends_with(".debug_pkl")) continue;
    if (entry.deflated) {
      const std::string content = unpack(entry, "archive");
      writer.add(entry.name, std::as_bytes(std::span(content)), true);
    } else {
      writer.add(entry.name, entry.data, entry.name.ends_with(".py") || entry.name.ends_with(".pkl"));
    }
  }
  writer.finish();
}

}  // namespace mcompress
