#include "mcompress/data/tokenizer.h"

#include <cstdlib>
#include <filesystem>
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "../src/data/tokenizer/bpe.h"
#include "../src/data/tokenizer/pre_tokenizer.h"
#include "../src/data/tokenizer/unicode.h"
#include "mcompress/base/error.h"
#include "mcompress/base/sha256.h"
#include "random.h"
#include "test_files.h"

namespace mcompress {
namespace {

using nlohmann::json;
using testing::read_file;

const std::string kFolder = MCOMPRESS_TESTS_DIR "/data/tokenizers/";

Tokenizer read(const std::string& name) {
  return read_tokenizer_json(read_file(kFolder + name + ".json"), name);
}

std::string test_data() {
  const char* folder = std::getenv("MCOMPRESS_TEST_DATA");
  return folder == nullptr ? "" : std::string(folder) + "/";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::vector<std::string> pieces_of(Split split, std::string_view text) {
  std::vector<std::string> pieces;
  split_text(split, text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

// NAME.json, or NAME/tokenizer.model without what is put around a text.
void expect_ids(const std::string& folder, const std::string& name, const json& cases) {
  const bool is_json = std::filesystem::exists(folder + name + ".json");
  const Tokenizer tokenizer =
      is_json ? read_tokenizer_json(read_file(folder + name + ".json"), name) : load_tokenizer(folder + name);
  const auto encode = [&](const std::string& text) {
    return is_json ? tokenizer.encode_with_specials(text) : tokenizer.encode(text);
  };
  for (const json& one : cases) {
    if (one[0].is_array()) {  // two texts, as BERT puts them together: [CLS] a [SEP] b [SEP]
      std::vector<int32_t> both = encode(one[0][0].get<std::string>());
      const std::vector<int32_t> second = encode(one[0][1].get<std::string>());
      both.insert(both.end(), second.begin() + 1, second.end());
      EXPECT_EQ(json(both), one[1]) << name << ": " << one[0];
      continue;
    }
    EXPECT_EQ(json(encode(one[0].get<std::string>())), one[1]) << name << ": " << one[0];
  }
}

// tests/data/make_tokenizers.py wrote both, with the libraries that users train tokenizers with.
TEST(Tokenizer, GivesTheIdsOfTheLibraries) {
  const json all = json::parse(read_file(kFolder + "cases.json"));
  EXPECT_EQ(all.size(), 19U);
  for (const auto& [name, cases] : all.items()) expect_ids(kFolder, name, cases);
}

// Larger ones, that tests/readers/check_tokenizers.py makes.
TEST(Tokenizer, GivesTheIdsOfTheLibrariesOnMore) {
  const char* folder = std::getenv("MCOMPRESS_TOKENIZER_CASES");
  if (folder == nullptr) GTEST_SKIP() << "MCOMPRESS_TOKENIZER_CASES is not set";
  const json all = json::parse(read_file(std::string(folder) + "/cases.json"));
  EXPECT_FALSE(all.empty());
  for (const auto& [name, cases] : all.items()) expect_ids(std::string(folder) + "/", name, cases);
}

TEST(Tokenizer, SaysItsKind) {
  EXPECT_EQ(read("gpt2").kind(), "byte-level BPE");
  EXPECT_EQ(read("llama2").kind(), "SentencePiece BPE");
  EXPECT_EQ(read("unigram").kind(), "SentencePiece unigram");
  EXPECT_EQ(read("bert").kind(), "WordPiece");
  EXPECT_EQ(load_tokenizer(kFolder + "sp_unigram").kind(), "SentencePiece unigram");
}

TEST(Tokenizer, GivesTheIdsOfGpt2OnItsOwnVocabulary) {
  if (test_data().empty()) GTEST_SKIP() << "MCOMPRESS_TEST_DATA is not set";
  const Tokenizer tokenizer = load_tokenizer(test_data() + "tokenizers/gpt2");
  EXPECT_EQ(tokenizer.size(), 50257);
  int count = 0;
  const json vectors = json::parse(read_file(test_data() + "tokenizers/hf_vectors.json"));
  for (const json& each : vectors["tokenizers"]) {
    if (each["family"] != "gpt2") continue;
    for (const json& one : each["cases"]) {
      ++count;
      EXPECT_EQ(json(tokenizer.encode(one["text"].get<std::string>())), one["ids"]) << one["text"];
    }
  }
  EXPECT_EQ(count, 52);
  // The whole of a real text, by the hash of its ids in the data's README.
  const std::string text = read_file(test_data() + "wikitext-2/wiki.test.raw");
  const std::vector<int32_t> ids = tokenizer.encode(text);
  EXPECT_EQ(sha256_of(std::as_bytes(std::span(ids))),
            "91b9603eafb80ba78f417de40b17c20cf87f84ea64dd5ee5ea9e2e49cb748188");
  EXPECT_EQ(tokenizer.decode(ids), text);
}

TEST(Tokenizer, IsTheSameFromAGgufFile) {
  const Tokenizer ours = read("gpt2"), packed = load_tokenizer(MCOMPRESS_TESTS_DIR "/data/gguf/llama.gguf");
  EXPECT_EQ(packed.kind(), ours.kind());
  const json all = json::parse(read_file(kFolder + "cases.json"));
  for (const json& one : all["gpt2"])
    EXPECT_EQ(json(packed.encode(one[0].get<std::string>())), one[1]) << one[0];
  try {
    load_tokenizer(MCOMPRESS_TESTS_DIR "/data/gguf/blocks.gguf");
    FAIL();
  } catch (const Error& failure) {
    EXPECT_TRUE(has(failure.what(), "no tokenizer.ggml.model")) << failure.what();
  }
}

TEST(Tokenizer, ReadsSentencePieceFromAGgufFile) {
  const Tokenizer model = load_tokenizer(kFolder + "sp_bpe"),
                  packed = load_tokenizer(MCOMPRESS_TESTS_DIR "/data/gguf/gemma2_window.gguf");
  EXPECT_EQ(packed.kind(), "SentencePiece BPE");
  EXPECT_EQ(packed.encode_with_specials("a").front(), 1);
  const json all = json::parse(read_file(kFolder + "cases.json"));
  for (const json& one : all["sp_bpe"])
    EXPECT_EQ(json(packed.encode(one[0].get<std::string>())), one[1]) << one[0];
}

TEST(Tokenizer, DecodesToTheTextForAnyBytesOfUtf8) {
  const json all = json::parse(read_file(kFolder + "cases.json"));
  for (const char* name : {"gpt2", "llama3", "smol"}) {  // the others change texts before they cut them
    const Tokenizer tokenizer = read(name);
    for (const json& one : all[name]) {
      const auto text = one[0].get<std::string>();
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    }
  }
  EXPECT_THROW(read("gpt2").decode({100000}), Error);
}

TEST(Tokenizer, RefusesTextThatIsNoUtf8) {
  const Tokenizer tokenizer = read("gpt2");
  for (const std::string bad :
       {"\x80", "abc\xff", "\xc3", "\xe2\x82", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xc0\xaf"}) {
    try {
      tokenizer.encode(bad);
      FAIL() << bad;
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData);
      EXPECT_TRUE(has(failure.what(), "not UTF-8 at byte")) << failure.what();
    }
  }
}

TEST(SplitText, CutsWhereThePatternsDo) {
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(pieces_of(Split::kGpt2, "I'll pay  12€!"), (Pieces{"I", "'ll", " pay", " ", " 12", "€!"}));
  EXPECT_EQ(pieces_of(Split::kGpt2, "a \n b  "), (Pieces{"a", " \n", " b", "  "}));
  EXPECT_EQ(pieces_of(Split::kLlama3, "HE'LL (say) 12345\n\n x"),
            (Pieces{"HE", "'LL", " (", "say", ")", " ", "123", "45", "\n\n", " x"}));
  EXPECT_EQ(pieces_of(Split::kQwen2, "a12 \n\n b."), (Pieces{"a", "1", "2", " \n\n", " b", "."}));
  EXPECT_EQ(pieces_of(Split::kDigits, "a12 ½b"), (Pieces{"a", "1", "2", " ", "½", "b"}));
  EXPECT_EQ(pieces_of(Split::kDigitRuns, "a12 b"), (Pieces{"a", "12", " b"}));
}

// The rule as it is written: of all pairs the one of lowest rank, the leftmost of equals, again and again.
std::vector<int32_t> merged_slowly(std::vector<int32_t> symbols, const std::vector<Bpe::Merge>& merges) {
  while (true) {
    size_t best_rank = merges.size(), place = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left == symbols[i] && merges[rank].right == symbols[i + 1]) {
          best_rank = rank;
          place = i;
        }
      }
    }
    if (best_rank == merges.size()) return symbols;
    symbols[place] = merges[best_rank].result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

TEST(Bpe, MergesShortAndLongPiecesByTheSameRule) {
  const StringMap<int32_t> tokens = {{"a", 0}, {"b", 1}, {"c", 2}};
  // Ranks that are not in the order of lengths; 3: ab, 4: aa, 5: abc, 6: aab, 7: cc, 8: abcabc.
  const std::vector<Bpe::Merge> merges = {{0, 1, 3, 0}, {0, 0, 4, 1}, {3, 2, 5, 2},
                                          {0, 3, 6, 3}, {2, 2, 7, 4}, {5, 5, 8, 5}};
  const Bpe bpe(tokens, merges, Bpe::Start::kBytes, Unknown(), false);
  uint32_t state = 1;
  for (const size_t size : {0U, 1U, 2U, 3U, 10U, 47U, 48U, 49U, 50U, 200U, 1000U}) {
    std::string piece;
    std::vector<int32_t> symbols;
    for (size_t i = 0; i < size; ++i) {
      state = state * 1664525U + 1013904223U;
      symbols.push_back(static_cast<int32_t>((state >> 16U) % 3));
      piece += static_cast<char>('a' + symbols.back());
    }
    std::vector<int32_t> ids;
    bpe.encode(piece, ids);
    EXPECT_EQ(ids, merged_slowly(symbols, merges)) << piece;
  }
}

TEST(Tokenizer, TakesALongRunOfOneCharacter) {
  const Tokenizer gpt2 = read("gpt2");
  for (const char letter : {'a', ' ', '\n', '='}) {
    const std::string text(1'000'000, letter);
    EXPECT_EQ(gpt2.decode(gpt2.encode(text)), text);
    for (const char* name : {"llama2", "gemma", "metaspace", "unigram", "xlmr", "bert", "odd", "gpt4o"})
      read(name).encode(text);
    for (const char* name : {"sp_bpe", "sp_unigram"}) load_tokenizer(kFolder + name).encode(text);
  }
}

// By the tokenizers library: unknown characters in a row are one, and fall back to bytes together or not at
// all.
TEST(Tokenizer, FallsBackToTheBytesOfARunOfCharacters) {
  const json tokenizer = json::parse(R"({"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true,
      "vocab": [["<unk>", 0], ["a", -1], ["<0xC3>", -2], ["<0xA9>", -2]]}})");
  const Tokenizer unigram = read_tokenizer_json(tokenizer.dump(), "t");
  EXPECT_EQ(unigram.encode("a\u00e9a"), (std::vector<int32_t>{1, 2, 3, 1}));
  EXPECT_EQ(unigram.encode("a\u00e9\u00e8a"), (std::vector<int32_t>{1, 0, 1}));
}

// utf8proc alone sorts marks in a row by the square of their number.
TEST(NormalForm, TakesALongRunOfMarks) {
  std::string marks = "a";
  for (int i = 0; i < 200'000; ++i) marks += "\u0301\u0323";
  const std::string sorted = normal_form(marks, NormalForm::kNfkd);
  EXPECT_EQ(sorted.substr(0, 5), "a\u0323\u0323");
  EXPECT_EQ(sorted.size(), marks.size());
  EXPECT_EQ(normal_form("e\u0301\u0323 \uac00 \ufb01", NormalForm::kNfkc), "\u1eb9\u0301 \uac00 fi");
  EXPECT_EQ(normal_form("\u1e69\uac01", NormalForm::kNfd), "s\u0323\u0307\u1100\u1161\u11a8");
}

// An expression that looks at a run of letters in every way before it fails.
TEST(Tokenizer, StopsAtAnExpressionThatTakesTooLong) {
  json tokenizer = json::parse(read_file(kFolder + "gpt2.json"));
  tokenizer["normalizer"] = {{"type", "Replace"}, {"pattern", {{"Regex", "(a+)+$"}}}, {"content", "b"}};
  const Tokenizer slow = read_tokenizer_json(tokenizer.dump(), "t");
  EXPECT_EQ(slow.encode("aab"), read("gpt2").encode("aab"));
  try {
    slow.encode(std::string(10'000, 'a') + "!");
    FAIL();
  } catch (const Error& failure) {
    EXPECT_TRUE(has(failure.what(), "'(a+)+$' takes too long to match the text at byte 0")) << failure.what();
  }
}

}  // namespace
}  // namespace mcompress
