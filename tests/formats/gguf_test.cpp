#include "mcompress/formats/gguf.h"

#include <cmath>
#include <cstring>

#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/safetensors.h"
#include "random.h"
#include "test_files.h"

namespace mcompress {
namespace {

using testing::read_file;

const std::string kFolder = MCOMPRESS_TESTS_DIR "/data/gguf/";

Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// tests/data/make_gguf.py wrote both with the gguf package.
TEST(Gguf, DequantizesEachTypeAsTheGgufPackageDoes) {
  const std::string content = read_file(kFolder + "blocks.gguf"),
                    expected = read_file(kFolder + "blocks.safetensors");
  const GgufFile file = read_gguf(bytes_of(content), "blocks.gguf");
  ASSERT_EQ(file.tensors.size(), 11U);
  const SafetensorsFile values = read_safetensors(bytes_of(expected), "blocks.safetensors");
  for (const GgufTensor& tensor : file.tensors) {
    EXPECT_EQ(tensor.name, name_of(tensor.type));
    EXPECT_EQ(tensor.shape, (std::vector<int64_t>{3, 512}));
    std::vector<float> ours(size_t{3} * 512);
    dequantize_gguf(tensor.type, tensor.bytes, ours.data());
    for (const Array& array : values.arrays) {
      if (array.name != tensor.name) continue;
      std::vector<float> theirs(ours.size());
      ASSERT_EQ(array.bytes.size(), theirs.size() * sizeof(float));
      std::memcpy(theirs.data(), array.bytes.data(), array.bytes.size());
      for (size_t i = 0; i < ours.size(); ++i)
        ASSERT_NEAR(ours[i], theirs[i], 1e-6 * std::abs(theirs[i])) << tensor.name << " at " << i;
    }
  }
}

TEST(Gguf, ReadsMetadataOfAllKinds) {
  const std::string content = read_file(kFolder + "blocks.gguf");
  const auto metadata = read_gguf(bytes_of(content), "blocks.gguf").metadata;
  EXPECT_EQ(std::get<int64_t>(metadata.at("some.count")), 7);
  EXPECT_EQ(std::get<double>(metadata.at("some.number")), 0.5);
  EXPECT_EQ(std::get<int64_t>(metadata.at("some.flag")), 1);
  EXPECT_EQ(std::get<std::vector<std::string>>(metadata.at("some.words")),
            (std::vector<std::string>{"a", "", "b c"}));
  EXPECT_EQ(std::get<std::vector<int64_t>>(metadata.at("some.integers")), (std::vector<int64_t>{-1, 2, 3}));
  EXPECT_EQ(std::get<std::string>(metadata.at("general.architecture")), "none");
}

// Builds a file a field at a time.
class Writer {
 public:
  template <typename Number>
  Writer& add(Number number) {
    text_.append(reinterpret_cast<const char*>(&number), sizeof(number));
    return *this;
  }
  Writer& add_text(const std::string& text) {
    add(static_cast<uint64_t>(text.size()));
    text_ += text;
    return *this;
  }
  Writer& header(uint64_t tensors, uint64_t pairs, uint32_t version = 3) {
    text_ = "GGUF";
    return add(version).add(tensors).add(pairs);
  }
  Writer& tensor(const std::string& name, const std::vector<uint64_t>& inner_first, uint32_t type,
                 uint64_t offset) {
    add_text(name).add(static_cast<uint32_t>(inner_first.size()));
    for (const uint64_t size : inner_first) add(size);
    return add(type).add(offset);
  }
  std::string with_data(size_t bytes) const {
    std::string file = text_;
    file.resize((file.size() + 31) / 32 * 32, '\0');
    return file + std::string(bytes, '\1');
  }

 private:
  std::string text_;
};

std::string answer_to(const std::string& content) {
  try {
    read_gguf(bytes_of(content), "x.gguf");
    return "";
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData) << failure.what();
    return failure.what();
  }
}

void expect_answer(const std::string& content, const std::string& words) {
  const std::string answer = answer_to(content);
  EXPECT_NE(answer.find(words), std::string::npos) << answer << "\n wanted: " << words;
}

TEST(Gguf, RefusesWhatIsNoneByName) {
  const auto one = [](const std::vector<uint64_t>& sizes, uint32_t type, uint64_t offset, size_t bytes) {
    return Writer().header(1, 0).tensor("t", sizes, type, offset).with_data(bytes);
  };
  EXPECT_EQ(answer_to(one({4, 2}, 0, 0, 32)), "");
  EXPECT_EQ(answer_to(Writer().header(0, 0).with_data(0)), "");
  expect_answer("GGUX", "is no GGUF file");
  expect_answer("GGUF", "ends in the middle of its header");
  expect_answer(Writer().header(0, 0, 1).with_data(0), "version 1 of GGUF is not known");
  expect_answer(Writer().header(0, 0, 0x03000000).with_data(0), "is not known");
  expect_answer(Writer().header(UINT64_MAX, 0).with_data(0), "ends in the middle of its header");
  expect_answer(Writer().header(0, UINT64_MAX).with_data(0), "a key of the metadata is empty");
  expect_answer(one({4, 2}, 0, 0, 31), "reaches beyond the end of the file");
  expect_answer(one({4, 2}, 0, 32, 64), "does not begin where the one before it ends");
  expect_answer(one({4, 2}, 0, 1 << 20, 64), "does not begin where the one before it ends");
  expect_answer(one({4, 2}, 0, UINT64_MAX - 31, 64), "does not begin where the one before it ends");
  expect_answer(Writer().header(2, 0).tensor("a", {16}, 0, 0).tensor("b", {16}, 0, 32).with_data(128),
                "does not begin where the one before it ends");  // which overlap
  expect_answer(one({4, 2}, 9, 0, 64), "has type 9, which is not read");
  expect_answer(one({16, 2}, 2, 0, 64), "has rows of 16, which blocks of 32 do not divide");
  expect_answer(one({4, 0}, 0, 0, 64), "has a dimension of 0");
  expect_answer(one({uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0, 64), "reaches beyond the end of the file");
  expect_answer(one({INT64_MAX, 4}, 0, 0, 64), "reaches beyond the end of the file");
  expect_answer(one({1, 1, 1, 1, 1}, 0, 0, 64), "has 5 dimensions");
  expect_answer(Writer().header(2, 0).tensor("t", {8}, 0, 0).tensor("t", {8}, 0, 32).with_data(64),
                "'t' is there twice");
  const auto pair = [](auto fill) {
    Writer writer;
    fill(writer.header(0, 1).add_text("k"));
    return writer.with_data(0);
  };
  expect_answer(pair([](Writer& w) { w.add(uint32_t{13}); }), "key 'k' has type 13");
  expect_answer(pair([](Writer& w) { w.add(uint32_t{9}).add(uint32_t{9}).add(uint64_t{1}); }),
                "list of type 9");
  expect_answer(pair([](Writer& w) { w.add(uint32_t{9}).add(uint32_t{4}).add(UINT64_MAX); }),
                "ends in the middle");
  for (const uint32_t type : {0, 4, 6, 7, 8, 10, 12}) {
    expect_answer(pair([&](Writer& w) { w.add(uint32_t{9}).add(type).add(uint64_t{1} << 60); }),
                  "ends in the middle");
  }
  expect_answer(pair([](Writer& w) { w.add(uint32_t{8}).add(UINT64_MAX); }), "ends in the middle");
  expect_answer(pair([](Writer& w) { w.add(uint32_t{10}).add(UINT64_MAX); }), "which no model has");
  for (const uint32_t alignment : {0, 24}) {
    expect_answer(
        Writer().header(0, 1).add_text("general.alignment").add(uint32_t{4}).add(alignment).with_data(0),
        "is not a power of two");
  }
  expect_answer(Writer()
                    .header(0, 2)
                    .add_text("k")
                    .add(uint32_t{4})
                    .add(uint32_t{1})
                    .add_text("k")
                    .add(uint32_t{4})
                    .add(uint32_t{1})
                    .with_data(0),
                "key 'k' is there twice");
}

// Every prefix, and bytes changed here and there: an answer or a file, never anything else.
TEST(Gguf, SurvivesDamage) {
  const std::string good = read_file(kFolder + "llama.gguf");
  for (size_t i = 0; i < 150; ++i) EXPECT_NE(answer_to(good.substr(0, good.size() * i / 150)), "");
  testing::Random random(3);
  for (int i = 0; i < 300; ++i) {
    std::string damaged = good;
    damaged[random.below(i % 2 == 0 ? 400 : damaged.size())] = static_cast<char>(random.below(256));
    answer_to(damaged);
  }
}

}  // namespace
}  // namespace mcompress
