#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/base/output.h"
#include "mcompress/data/tokenizer.h"
#include "mcompress/formats/gguf.h"
#include "mcompress/formats/gguf_write.h"
#include "test_files.h"

namespace mcompress {
namespace {

const std::string kFolder = MCOMPRESS_TESTS_DIR "/data/tokenizers/";

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class GgufTokenizer : public ::testing::TestWithParam<const char*> {
 protected:
  GgufTokenizer() {
    std::filesystem::copy(kFolder + GetParam() + ".json", folder_ / "tokenizer.json");
    testing::write_file(folder_ / "config.json", R"({"bos_token_id": 0, "eos_token_id": 0})");
    const int64_t size = load_tokenizer(folder_.path()).size();
    OutputFile file(path_, false);
    GgufWriter(gguf_tokenizer_fields(folder_.path(), size), {}).write_header(file);
    file.commit();
    map_.emplace(path_);
    file_ = read_gguf(map_->bytes(), path_);
  }

  template <typename Value>
  Value& value(const std::string& key) {
    return std::get<Value>(file_.metadata.at("tokenizer.ggml." + key));
  }
  std::string answer() const {
    try {
      folder_tokenizer(file_, path_);
      return "";
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData) << failure.what();
      return failure.what();
    }
  }

  testing::TemporaryFolder folder_;
  std::string path_ = folder_ / "t.gguf";
  std::optional<MappedFile> map_;
  GgufFile file_;
};

TEST_P(GgufTokenizer, BecomesTheSameTokenizerJsonAgain) {
  const auto texts = folder_tokenizer(file_, path_);
  const Tokenizer original = load_tokenizer(folder_.path()),
                  again = read_tokenizer_json(texts.at("tokenizer.json"), "t");
  for (const char* text : {"", "The quick brown fox, 1234 of them: jumps!\n\n  over it's dogs", " a\tb ",
                           "e\xcc\x81\xc3\xa9 <|endoftext|>x<|im_start|>", "\xf0\x9f\x98\x80"}) {
    EXPECT_EQ(again.encode(text), original.encode(text)) << text;
    EXPECT_EQ(again.encode_with_specials(text), original.encode_with_specials(text)) << text;
  }
}

TEST_P(GgufTokenizer, IsRefusedWhereNoFolderCouldHoldIt) {
  auto& tokens = value<std::vector<std::string>>("tokens");
  const std::string token = tokens[40];
  tokens[40] = tokens[41];
  EXPECT_TRUE(contains(answer(), "is there twice")) << answer();
  tokens[40] = std::string(3000, 'a');
  EXPECT_TRUE(contains(answer(), "3000")) << answer();
  tokens[40] = token;
  value<std::vector<int64_t>>("token_type")[40] = 5;
  file_.metadata["tokenizer.ggml.add_bos_token"] = int64_t{1};
  file_.metadata["tokenizer.ggml.bos_token_id"] = int64_t{40};
  EXPECT_TRUE(contains(answer(), "bos_token_id is an unused token") || contains(answer(), "merge"))
      << answer();
}

INSTANTIATE_TEST_SUITE_P(Files, GgufTokenizer, ::testing::Values("gpt2", "smol", "llama3", "qwen2"));

}  // namespace
}  // namespace mcompress
