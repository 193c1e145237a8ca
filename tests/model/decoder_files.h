#pragma once

#include <filesystem>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/model/decoder.h"
#include "test_files.h"

namespace mcompress::testing {

const std::string kDecoders = MCOMPRESS_TESTS_DIR "/data/decoders/";

// A copy of the llama fixture whose config.json is changed.
class Copy {
 public:
  Copy() {
    std::filesystem::copy(
        kDecoders + "llama", folder_.path(),
        std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
    config = nlohmann::json::parse(read_file(folder_ / "config.json"));
  }
  std::string path() {
    write_file(folder_ / "config.json", config.dump());
    return folder_.path();
  }
  std::string operator/(const std::string& name) { return folder_ / name; }

  nlohmann::json config;

 private:
  TemporaryFolder folder_;
};

// What a folder or file is refused with; empty where it is none.
inline std::string answer_to(const std::string& folder) {
  try {
    const Decoder model(folder, at::kFloat);
    return "";
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData) << failure.what();
    return failure.what();
  }
}

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace mcompress::testing
