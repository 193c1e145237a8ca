#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cli/run_mcompress.h"

namespace mcompress::testing {

// The tensors of a safetensors file, to be changed and written again.
struct Tensors {
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  std::map<std::string, Tensor> all;

  explicit Tensors(const std::string& path) {
    const std::string file = read_file(path);
    uint64_t size = 0;
    std::memcpy(&size, file.data(), sizeof(size));
    const nlohmann::json header = nlohmann::json::parse(file.substr(8, size));
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      const auto begin = entry["data_offsets"][0].get<size_t>(), end = entry["data_offsets"][1].get<size_t>();
      all[name] = {entry["dtype"], entry["shape"], file.substr(8 + size + begin, end - begin)};
    }
  }

  void write(const std::string& path) const {
    nlohmann::json header = nlohmann::json::object();
    std::string data;
    for (const auto& [name, tensor] : all) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", tensor.shape},
                      {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    const std::string text = header.dump();
    const uint64_t size = text.size();
    write_file(path, std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text + data);
  }
};

}  // namespace mcompress::testing
