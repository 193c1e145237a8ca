#pragma once

#include <filesystem>
#include <string>

#include "cli/run_mcompress.h"

namespace mcompress::testing {

// The smallest language model, with a tokenizer that fits it, and a text.
class LanguageModel : public ::testing::Test {
 protected:
  LanguageModel() {
    std::filesystem::copy(shipped("decoders/llama"), folder_ / "model");
    std::filesystem::copy(shipped("tokenizers/gpt2.json"), folder_ / "model/tokenizer.json");
    std::string text;
    for (int i = 0; i < 200; ++i) text += "The quick brown fox is told " + std::to_string(i) + " times.\n";
    write_file(folder_ / "text.txt", text);
  }
  std::string evaluate(const std::string& options, const std::string& data = "text.txt") const {
    return "evaluate " + (folder_ / "model") + " --eval-data " + (folder_ / data) + " " + options;
  }

  TemporaryFolder folder_;
};

}  // namespace mcompress::testing
