#include "mcompress/data/tokenizer.h"

#include <cstdlib>
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "../src/data/tokenizer/bpe.h"
#include "../src/data/tokenizer/pre_tokenizer.h"
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

std::vector<std::string> pieces_of(Split split, std::string_view text) {
  std::vector<std::string> pieces;
  split_text(split, text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

// tests/data/make_tokenizers.py wrote both, with the library that users train tokenizers with.
TEST(Tokenizer, GivesTheIdsOfTheTokenizersLibrary) {
  const json all = json::parse(read_file(kFolder + "cases.json"));
  EXPECT_EQ(all.size(), 5U);
  for (const auto& [name, cases] : all.items()) {
    const Tokenizer tokenizer = read(name);
    EXPECT_EQ(tokenizer.kind(), "byte-level BPE");
    for (const json& one : cases) {
      EXPECT_EQ(json(tokenizer.encode_with_specials(one[0].get<std::string>())), one[1])
          << name << ": " << one[0];
    }
  }
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
  const std::vector<Bpe::Merge> merges = {{0, 1, 3}, {0, 0, 4}, {3, 2, 5}, {0, 3, 6}, {2, 2, 7}, {5, 5, 8}};
  const Bpe bpe(tokens, merges, false);
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
  const Tokenizer tokenizer = read("gpt2");
  for (const char letter : {'a', ' ', '\n', '='}) {
    const std::string text(1'000'000, letter);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(ReadTokenizerJson, RefusesWhatItDoesNotKnowByName) {
  const json good = json::parse(read_file(kFolder + "gpt2.json"));
  EXPECT_EQ(answer_to(good), "");
  const auto with = [&](const char* pointer, const json& value) {
    json changed = good;
    changed[json::json_pointer(pointer)] = value;
    return answer_to(changed);
  };
  EXPECT_TRUE(has(with("/normalizer", {{"type", "NFKC"}}), "normalizer 'NFKC' is not known"));
  EXPECT_TRUE(has(with("/pre_tokenizer", {{"type", "Metaspace"}}), "pre_tokenizer 'Metaspace' is not known"));
  EXPECT_TRUE(has(with("/pre_tokenizer", nullptr), "only byte-level BPE is known"));
  EXPECT_TRUE(has(with("/pre_tokenizer",
                       {{"type", "Split"}, {"pattern", {{"Regex", "(a+)+$"}}}, {"behavior", "Isolated"}}),
                  "not '(a+)+$'"));
  EXPECT_TRUE(
      has(with("/pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", false}}),
          "add_prefix_space and without use_regex"));
  EXPECT_TRUE(has(with("/post_processor", {{"type", "Odd"}}), "post_processor 'Odd' is not known"));
  EXPECT_TRUE(has(with("/model/type", "Unigram"), "model 'Unigram' is not known"));
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

// Bytes of a good file cut, changed and repeated: an answer or a tokenizer, never anything else.
TEST(ReadTokenizerJson, SurvivesDamage) {
  const std::string good = read_file(kFolder + "llama3.json");
  const auto survive = [](const std::string& text) {
    try {
      read_tokenizer_json(text, "t").encode("It's 2024, and all is well.\n");
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData);
    }
  };
  for (size_t i = 0; i < 100; ++i) survive(good.substr(0, good.size() * i / 100));
  testing::Random random(7);
  for (int i = 0; i < 200; ++i) {
    std::string damaged = good;
    for (int k = 0; k < 3; ++k)
      damaged[random.below(damaged.size())] = "{}[]\",:0-\xff\x00 e"[random.below(13)];
    survive(damaged);
  }
}

}  // namespace
}  // namespace mcompress
