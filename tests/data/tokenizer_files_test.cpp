#include <filesystem>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/data/tokenizer.h"
#include "mcompress/formats/base64.h"
#include "random.h"
#include "test_files.h"

namespace mcompress {
namespace {

using nlohmann::json;
using testing::read_file;

const std::string kFolder = MCOMPRESS_TESTS_DIR "/data/tokenizers/";

std::string answer_to(const json& tokenizer) {
  try {
    read_tokenizer_json(tokenizer.dump(), "t");
    return "";
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData) << failure.what();
    return failure.what();
  }
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(ReadTokenizerJson, RefusesWhatItDoesNotKnowByName) {
  const json good = json::parse(read_file(kFolder + "gpt2.json"));
  EXPECT_EQ(answer_to(good), "");
  const auto with = [&](const std::string& pointer, const json& value) {
    json changed = good;
    changed[json::json_pointer(pointer)] = value;
    return answer_to(changed);
  };
  const auto split = [&](const char* pattern, const char* behavior) {
    return with("/pre_tokenizer",
                {{"type", "Sequence"},
                 {"pretokenizers",
                  {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}},
                   good["pre_tokenizer"]}}});
  };
  EXPECT_EQ(split("a|b", "Isolated"), "");
  EXPECT_TRUE(has(split("a|b", "Shredded"), "behavior 'Shredded' of a Split is not known"));
  EXPECT_TRUE(has(split("(a", "Isolated"), "'(a' is not a regular expression"));
  EXPECT_TRUE(has(split("[a&&b]", "Isolated"), "has a set of sets, which is not known"));
  EXPECT_TRUE(has(split("[[:alpha:]]", "Isolated"), "has a POSIX class"));
  EXPECT_TRUE(has(split("\\w+", "Isolated"), "has \\w, which is not known"));
  EXPECT_TRUE(has(split("(?m).", "Isolated"), "has (?m, which is not known"));
  EXPECT_TRUE(has(split("a{2}+", "Isolated"), "has '}+'"));
  EXPECT_TRUE(has(split("(?=e)", "Isolated"), "may match nothing"));
  EXPECT_TRUE(has(split("x*", "Isolated"), "may match nothing"));
  EXPECT_EQ(split("(?i:[a-c]|\\p{Lu})\\s?", "Isolated"), "");
  EXPECT_TRUE(
      has(with("/pre_tokenizer",
               {{"type", "Split"}, {"behavior", "Isolated"}, {"pattern", {{"String", "e"}, {"Regex", "x"}}}}),
          "has more than one key"));
  EXPECT_TRUE(has(with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}}),
                  "replacement 'ab' of Metaspace is not one character"));
  json added = good["added_tokens"];
  added.push_back({{"id", 3}, {"content", "e"}, {"special", true}});
  EXPECT_TRUE(has(with("/added_tokens", added), "added token 'e' has the id 3, and"));
  added.back() = {{"id", 1}, {"content", "the end"}, {"special", true}};
  EXPECT_TRUE(has(with("/added_tokens", added), "added token 'the end' has the id 1 of token"));
  EXPECT_TRUE(has(with("/model/vocab/" + std::string(3000, 'a'), 419), "a token of 3000 bytes"));
  EXPECT_TRUE(has(with("/normalizer", {{"type", "Shout"}}), "normalizer 'Shout' is not known"));
  EXPECT_TRUE(has(with("/normalizer", {{"type", "Replace"}, {"content", ""}}), "has no pattern"));
  EXPECT_TRUE(has(with("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}}),
                  "has an empty pattern"));
  EXPECT_TRUE(
      has(with("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "!"}}), "is not base64"));
  EXPECT_TRUE(has(with("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "AAEAAA=="}}),
                  "map of characters, of 4 bytes, is cut short"));
  EXPECT_TRUE(has(with("/pre_tokenizer", {{"type", "Odd"}}), "pre_tokenizer 'Odd' is not known"));
  EXPECT_TRUE(
      has(with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}}),
          "prepend_scheme 'last' of Metaspace is not known"));
  EXPECT_TRUE(
      has(with("/pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", false}}),
          "add_prefix_space and without use_regex"));
  EXPECT_TRUE(has(with("/post_processor", {{"type", "Odd"}}), "post_processor 'Odd' is not known"));
  EXPECT_TRUE(has(with("/model/type", "Unigram"), "model 'Unigram' after a ByteLevel pre_tokenizer"));
  EXPECT_TRUE(has(with("/model/dropout", 0.1), "dropout"));
  EXPECT_TRUE(has(with("/model/byte_fallback", true), "byte_fallback"));
  EXPECT_TRUE(has(with("/model/continuing_subword_prefix", "##"), "continuing_subword_prefix"));
  EXPECT_TRUE(has(with("/model/vocab", json::array()), "lacks the object 'vocab'"));
  EXPECT_TRUE(has(with("/model/merges", "a b"), "lacks the list 'merges'"));
  EXPECT_TRUE(has(with("/model/merges/0", "a"), "is not two tokens"));
  EXPECT_TRUE(has(with("/model/merges/0", json{"a", "zzz"}), "needs 'zzz', which is no token"));
  EXPECT_TRUE(has(with("/model/vocab/a", good["model"]["vocab"]["b"]), "have the same id"));
  for (const json& id : {json(-1), json(1.5), json("1"), json(int64_t{1} << 31)})
    EXPECT_TRUE(has(with("/model/vocab/a", id), "the id of token 'a'")) << id;
  EXPECT_TRUE(has(with("/added_tokens/0/content", 1), "lacks the text 'content'"));
  EXPECT_TRUE(has(answer_to(json::array()), "has no 'model'"));
}

TEST(ReadTokenizerJson, RefusesModelsThatContradictThemselves) {
  const auto changed = [](const char* name, const char* pointer, const json& value) {
    json tokenizer = json::parse(read_file(kFolder + name + ".json"));
    tokenizer[json::json_pointer(pointer)] = value;
    return answer_to(tokenizer);
  };
  EXPECT_TRUE(
      has(changed("llama2", "/model/type", "WordLevel"), "model 'WordLevel' is not known; BPE, Unigram"));
  EXPECT_TRUE(has(changed("llama2", "/model/unk_token", "<none>"), "unk_token '<none>' is no token"));
  EXPECT_TRUE(has(changed("llama2", "/model/merges/0", json{"a", "zzz"}), "needs 'zzz', which is no token"));
  EXPECT_TRUE(has(changed("unigram", "/model/unk_id", 4096), "unk_id 4096 is none of its"));
  EXPECT_TRUE(has(changed("unigram", "/model/unk_id", nullptr), "has no unk_id"));
  EXPECT_TRUE(
      has(changed("unigram", "/model/vocab/3", json{"a", "b"}), "token 3 is not a text and its score"));
  EXPECT_TRUE(has(changed("bert", "/model/unk_token", "none"), "unk_token 'none' is no token"));
  EXPECT_TRUE(has(changed("bert", "/model/continuing_subword_prefix", nullptr), "lacks the text"));
}

std::string answer_to_model(const std::string& bytes) {
  testing::TemporaryFolder folder;
  testing::write_file(folder / "tokenizer.model", bytes);
  try {
    load_tokenizer(folder.path()).encode("It's 2024, and all is well.\n");
    return "";
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData) << failure.what();
    return failure.what();
  }
}

TEST(ReadTokenizerJson, RefusesNormalizersThatMakeMoreAndMore) {
  json tokenizer = json::parse(read_file(kFolder + "gpt2.json"));
  const json twice = {{"type", "Replace"}, {"pattern", {{"String", "e"}}}, {"content", "eeeeeeee"}};
  tokenizer["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::vector<json>(40, twice)}};
  const Tokenizer growing = read_tokenizer_json(tokenizer.dump(), "t");
  EXPECT_NO_THROW(growing.encode("abc"));
  try {
    growing.encode("e");
    FAIL();
  } catch (const Error& failure) {
    EXPECT_TRUE(has(failure.what(), "make more than 64 times as much")) << failure.what();
  }
}

// A map whose only key is the first byte of a character: 1 ^ 0xC3 leads to a leaf, whose value stands at 2.
TEST(ReadTokenizerJson, TakesAMapThatCutsCharacters) {
  std::vector<uint32_t> units(256, 0x80000000U);
  units[0] = 1U << 10U;
  units[1 ^ 0xC3] = 0xC3U | 1U << 8U | ((1U ^ 0xC3U ^ 2U) << 10U);
  units[2] = 0;
  const auto bytes = static_cast<uint32_t>(units.size() * sizeof(uint32_t));
  std::string map(reinterpret_cast<const char*>(&bytes), sizeof(bytes));
  map.append(reinterpret_cast<const char*>(units.data()), bytes);
  map.append("x\0", 2);
  json tokenizer = json::parse(read_file(kFolder + "gpt2.json"));
  const std::string text = "aaaaaaaaaa\u00e9\u00c3";
  const std::vector<int32_t> plain = read_tokenizer_json(tokenizer.dump(), "t").encode(text);
  tokenizer["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", to_base64(map)}};
  EXPECT_EQ(read_tokenizer_json(tokenizer.dump(), "t").encode(text), plain);
}

TEST(LoadTokenizer, MakesThatOfOptFromItsTwoFiles) {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "vocab.json", R"({"<s>":0,"<pad>":1,"</s>":2,"<unk>":3,"a":4,"b":5,"ab":6})");
  testing::write_file(folder / "merges.txt", "#version: 0.2\na b\n");
  testing::write_file(folder / "config.json", R"({"model_type":"opt"})");
  const Tokenizer opt = load_tokenizer(folder.path());
  EXPECT_EQ(opt.encode_with_specials("abba<pad>"), (std::vector<int32_t>{2, 6, 5, 4, 1}));
  EXPECT_EQ(summarize_tokenizer(folder.path()).tokens, 7);
  testing::write_file(folder / "config.json", R"({"model_type":"qwen2"})");
  EXPECT_THROW(load_tokenizer(folder.path()), Error);
  EXPECT_EQ(summarize_tokenizer(folder.path()).kind, "byte-level BPE");
}

TEST(SentencePiece, NamesWhatIsWrong) {
  const std::string good = read_file(kFolder + "sp_bpe/tokenizer.model");
  EXPECT_EQ(answer_to_model(good), "");
  EXPECT_TRUE(has(answer_to_model(""), "it has no pieces"));
  EXPECT_TRUE(has(answer_to_model(good.substr(0, good.size() - 1)), "not a SentencePiece model, or damaged"));
  EXPECT_TRUE(
      has(answer_to_model("version https://git-lfs.github.com/spec/v1\n"), "not a SentencePiece model"));
  // pieces: 1 { 1: text, 3: type }; trainer_spec: 2 { 3: model_type }; normalizer_spec: 3 { 5:
  // escape_whitespaces }
  const std::string piece(
      "\x0A\x03\x0A\x01"
      "a",
      5);
  EXPECT_TRUE(has(answer_to_model(piece + piece), "piece 1, 'a', is empty or there twice"));
  EXPECT_TRUE(has(answer_to_model(std::string("\x0A\x05\x0A\x01"
                                              "a\x18\x09",
                                              7)),
                  "type 9, which is not known"));
  EXPECT_TRUE(has(answer_to_model(std::string("\x0A\x05\x0A\x01"
                                              "a\x18\x06",
                                              7)),
                  "piece 'a' is none of a byte"));
  EXPECT_TRUE(has(answer_to_model(piece + std::string("\x12\x02\x18\x03", 4)), "its model is of type 3"));
  EXPECT_TRUE(has(answer_to_model(piece + std::string("\x12\x03\x98\x02\x01", 5)), "not a piece of each"));
  EXPECT_TRUE(
      has(answer_to_model(piece + std::string("\x12\x03\xC0\x01\x01", 5)), "white space as a suffix"));
  EXPECT_TRUE(
      has(answer_to_model(piece + std::string("\x1A\x02\x28\x00", 4)), "does not escape white space"));
  EXPECT_TRUE(has(answer_to_model(piece + std::string("\x1A\x04\x12\x02\x01\x01", 6)), "is cut short"));
}

// Bytes of good files cut and changed: an answer or a tokenizer, never anything else.
TEST(ReadTokenizerJson, SurvivesDamage) {
  const auto survive = [](const std::string& text) {
    try {
      read_tokenizer_json(text, "t").encode("It's 2024, and all is well.\n");
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData);
    }
  };
  testing::Random random(7);
  for (const char* name : {"llama3", "llama2", "xlmr", "bert", "odd"}) {
    const std::string good = read_file(kFolder + name + ".json");
    for (size_t i = 0; i < 40; ++i) survive(good.substr(0, good.size() * i / 40));
    for (int i = 0; i < 80; ++i) {
      std::string damaged = good;
      for (int k = 0; k < 3; ++k)
        damaged[random.below(damaged.size())] = "{}[]\",:0-\xff\x00 e"[random.below(13)];
      survive(damaged);
    }
  }
}

TEST(SentencePiece, SurvivesDamage) {
  testing::Random random(11);
  for (const char* name : {"sp_bpe", "sp_unigram"}) {
    const std::string good = read_file(kFolder + name + "/tokenizer.model");
    for (size_t i = 0; i < 60; ++i) answer_to_model(good.substr(0, good.size() * i / 60));
    for (int i = 0; i < 120; ++i) {
      std::string damaged = good;
      for (int k = 0; k < 3; ++k)
        damaged[random.below(damaged.size())] = static_cast<char>(random.below(256));
      answer_to_model(damaged);
    }
  }
}

}  // namespace
}  // namespace mcompress
