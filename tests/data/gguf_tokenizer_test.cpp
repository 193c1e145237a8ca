#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

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
  explicit GgufTokenizer(int bos = 0, const std::function<void(nlohmann::json&)>& change = {}) {
    nlohmann::json tokenizer = nlohmann::json::parse(testing::read_file(kFolder + GetParam() + ".json"));
    if (change) change(tokenizer);
    testing::write_file(folder_ / "tokenizer.json", tokenizer.dump());
    testing::write_file(folder_ / "config.json",
                        "{\"bos_token_id\": " + std::to_string(bos) + ", \"eos_token_id\": 0}");
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

// SentencePiece, as llama.cpp calls merges with bytes for what they do not know.
class GgufPieces : public GgufTokenizer {
 protected:
  GgufPieces() : GgufTokenizer(1, list_all_merges) {}

  // Every pair that makes a token, as in files that are converted from SentencePiece.
  static void list_all_merges(nlohmann::json& tokenizer) {
    const nlohmann::json vocabulary = tokenizer["model"]["vocab"];
    nlohmann::json merges = nlohmann::json::array();
    for (const nlohmann::json& merge : tokenizer["model"]["merges"]) {
      const auto token = merge[0].get<std::string>() + merge[1].get<std::string>();
      for (size_t at = 1; at < token.size(); ++at) {
        const std::string left = token.substr(0, at), right = token.substr(at);
        if (vocabulary.contains(left) && vocabulary.contains(right)) merges.push_back({left, right});
      }
    }
    tokenizer["model"]["merges"] = merges;
  }
};

TEST_P(GgufPieces, GiveTheSameIdsInEveryFile) {
  const Tokenizer original = load_tokenizer(folder_.path()), inside = gguf_tokenizer(file_, path_),
                  again = read_tokenizer_json(folder_tokenizer(file_, path_).at("tokenizer.json"), "t");
  for (const char* text : {"", "The quick brown fox, 1234 of them: jumps!\n\n  over it's dogs", " a\tb ",
                           "e\xcc\x81\xc3\xa9 </s>x<s>", "\xf0\x9f\x98\x80", "   spaces   "}) {
    for (const Tokenizer* other : {&inside, &again}) {
      EXPECT_EQ(other->encode(text), original.encode(text)) << text;
      EXPECT_EQ(other->encode_with_specials(text), original.encode_with_specials(text)) << text;
      EXPECT_EQ(other->decode(other->encode(text)), original.decode(original.encode(text))) << text;
    }
  }
}

TEST_P(GgufPieces, AreRefusedWhereTheyMergeOtherwise) {
  const std::string path = folder_ / "tokenizer.json";
  const auto refused = [&](const std::string& text) {
    testing::write_file(path, text);
    try {
      gguf_tokenizer_fields(folder_.path(), load_tokenizer(folder_.path()).size());
      return std::string();
    } catch (const Error& failure) {
      return std::string(failure.what());
    }
  };
  nlohmann::json tokenizer = nlohmann::json::parse(testing::read_file(path));
  const nlohmann::json whole = tokenizer;
  tokenizer["model"]["merges"].erase(tokenizer["model"]["merges"].size() - 1);
  EXPECT_TRUE(contains(refused(tokenizer.dump()), "by other merges"));
  tokenizer = whole;
  tokenizer["normalizer"] = {{"type", "Lowercase"}};
  EXPECT_TRUE(contains(refused(tokenizer.dump()), "has other steps before its merges"));
  tokenizer = whole;
  tokenizer["model"]["ignore_merges"] = true;
  EXPECT_TRUE(contains(refused(tokenizer.dump()), "has other steps before its merges"));
  EXPECT_EQ(refused(whole.dump()), "");
}

INSTANTIATE_TEST_SUITE_P(Files, GgufPieces, ::testing::Values("llama2", "gemma"));
INSTANTIATE_TEST_SUITE_P(Files, GgufTokenizer, ::testing::Values("gpt2", "smol", "llama3", "qwen2"));

}  // namespace
}  // namespace mcompress
