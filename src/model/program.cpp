#include "mcompress/model/program.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <sstream>

#include <ATen/MemoryOverlap.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/print_handler.h>
#include <torch/csrc/jit/runtime/profiling_graph_executor_impl.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/process.h"
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

// The line of a LibTorch message that tells the reason: the exception below a traceback, or the first line.
std::string reason_of(const std::exception& failure) {
  const auto* error = dynamic_cast<const c10::Error*>(&failure);
  const std::string text = error != nullptr ? error->what_without_backtrace() : failure.what();
  std::string first, raised;
  bool traced = false;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    const bool blank = line.find_first_not_of(' ') == std::string::npos;
    if (first.empty() && !blank) first = line;
    traced = traced || line.starts_with("Traceback");
    const size_t colon = line.find(": ");  // "RuntimeError: ...", "builtins.ValueError: ..."
    if (traced && colon != std::string::npos && line.find(' ') > colon) raised = line.substr(colon + 2);
    begin = end + 1;
  }
  return raised.empty() ? first : raised;
}

// An exception of LibTorch about what the user gave us, as an Error that names it.
[[noreturn]] void fail(const std::string& problem, const std::exception& failure) {
  if (dynamic_cast<const Error*>(&failure) != nullptr ||
      dynamic_cast<const Interrupted*>(&failure) != nullptr)
    throw;
  const std::string reason = reason_of(failure);
  const bool memory = dynamic_cast<const std::bad_alloc*>(&failure) != nullptr ||
                      reason.find("can't allocate memory") != std::string::npos;
  if (memory) throw error(Exit::kOutOfMemory, "{}: out of memory", problem);
  throw bad_data("{}: {}", problem, reason);
}

// Hands the members of a serialized program to the writer.
void repack(const std::string& serialized, ZipWriter& writer) {
  for (const ZipEntry& entry : read_zip(std::as_bytes(std::span(serialized)), "archive")) {
    // The id is made from the checksums of all members, left out ones too, and is read for logs only.
    if (entry.name.ends_with(".debug_pkl") || entry.name.ends_with(".data/serialization_id")) continue;
    if (entry.deflated) {
      const std::string content = unpack(entry, "archive");
      writer.add(entry.name, std::as_bytes(std::span(content)), true);
    } else {
      writer.add(entry.name, entry.data, entry.name.ends_with(".py") || entry.name.ends_with(".pkl"));
    }
  }
  writer.finish();
}

}  // namespace

torch::jit::Module load_program(const std::string& path, bool trust_code) {
  keep_freed_memory();
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
  } catch (const std::exception& failure) {
    fail(fmt::format("'{}' is not a TorchScript program that loads", path), failure);
  }
}

at::Tensor run_program(torch::jit::Module& program, const at::Tensor& input) {
  c10::IValue output;
  try {
    output = program({input});
  } catch (const std::exception& failure) {
    fail("the model fails on this data", failure);
  }
  if (!output.isTensor()) throw bad_data("the model returns a {} and not a tensor", output.tagKind());
  return output.toTensor();
}

std::function<at::Tensor(const at::Tensor&)> program_forward(const torch::jit::Module& program) {
  return [program = torch::jit::Module(program)](const at::Tensor& input) mutable {
    const c10::InferenceMode guard;
    return run_program(program, input);
  };
}

std::vector<std::string> copy_values(const torch::jit::Module& from, const torch::jit::Module& to) {
  std::map<std::string, at::Tensor> values;
  const auto read = [&](const auto& list) {
    for (const auto& item : list) values[item.name] = item.value;
  };
  read(from.named_parameters());
  read(from.named_buffers());
  std::vector<std::string> names;
  const auto write = [&](const auto& list) {
    for (const auto& item : list) {
      const auto found = values.find(item.name);
      if (found == values.end() || found->second.sizes() != item.value.sizes() ||
          found->second.scalar_type() != item.value.scalar_type() ||
          at::has_internal_overlap(item.value) == at::MemOverlap::Yes)
        continue;
      item.value.detach().copy_(found->second.detach());
      names.push_back(item.name);
    }
  };
  write(to.named_parameters());
  write(to.named_buffers());
  return names;
}

torch::jit::Module module_at(const torch::jit::Module& program, const std::string& path) {
  torch::jit::Module module = program;
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    module = module.attr(path.substr(begin, end - begin)).toModule();
    begin = end + 1;
  }
  return module;
}

std::string serialize_program(const torch::jit::Module& program) {
  std::string serialized;
  torch::jit::ExportModule(program, [&serialized](const void* data, size_t size) {
    serialized.append(static_cast<const char*>(data), size);
    return size;
  });
  return serialized;
}

torch::jit::Module reload_program(const torch::jit::Module& program) {
  std::istringstream serialized(serialize_program(program));
  torch::jit::Module loaded = torch::jit::load(serialized);
  loaded.eval();
  return loaded;
}

void write_program(const std::string& serialized, OutputFile& file) {
  ZipWriter writer(file);
  repack(serialized, writer);
}

uint64_t count_program_bytes(const std::string& serialized) {
  ZipWriter writer([](Bytes /*bytes*/) {});
  repack(serialized, writer);
  return writer.size_bytes();
}

bool is_written_as(const std::string& serialized, Bytes expected) {
  bool same = true;
  ZipWriter writer([&](Bytes bytes) {
    same =
        same && bytes.size() <= expected.size() && std::equal(bytes.begin(), bytes.end(), expected.begin());
    if (same) expected = expected.subspan(bytes.size());
  });
  repack(serialized, writer);
  return same && expected.empty();
}

}  // namespace mcompress
