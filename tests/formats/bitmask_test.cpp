#include "mcompress/formats/bitmask.h"

#include <cstring>
#include <functional>
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <openssl/evp.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/zstd.h"
#include "test_files.h"

namespace mcompress {
namespace {

using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

constexpr const char* kDenseKey = "mcompress.dense";

Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

struct Content {
  DType dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// A safetensors file in parts that a test changes.
struct Parts {
  std::map<std::string, Content> arrays;
  std::map<std::string, std::string> metadata;
};

std::string written(const Parts& parts, const TemporaryFolder& folder) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, content] : parts.arrays) entries.push_back({name, content.dtype, content.shape});
  const SafetensorsWriter writer(entries, parts.metadata);
  OutputFile file(folder / "parts", true);
  writer.write_header(file);
  for (const auto& [name, content] : parts.arrays) writer.write(file, name, 0, bytes_of(content.bytes));
  file.commit();
  return read_file(folder / "parts");
}

Parts parts_of(const std::string& bytes) {
  Parts parts;
  const SafetensorsFile file = read_safetensors(bytes_of(bytes), "stored");
  parts.metadata = file.metadata;
  for (const Array& array : file.arrays) {
    parts.arrays[array.name] = {
        array.dtype, array.shape,
        std::string(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size())};
  }
  return parts;
}

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

class Bitmask : public ::testing::Test {
 protected:
  Bitmask() {
    Parts parts;
    std::vector<float> weight(size_t{32} *
                              61);  // every fourth is not zero; rows end inside a byte of the mask
    for (size_t i = 0; i < weight.size(); i += 4) weight[i] = static_cast<float>(i) - 500.25F;
    weight[1] = -0.0F;
    std::vector<uint16_t> half(size_t{16} * 256);
    for (size_t i = 0; i < half.size(); i += 7) half[i] = static_cast<uint16_t>(i + 1);
    parts.arrays["a.weight"] = {DType::kF32, {32, 61}, raw(weight)};
    parts.arrays["conv.weight"] = {DType::kF16, {16, 64, 2, 2}, raw(half)};
    parts.arrays["a.bias"] = {DType::kF32, {3}, raw(std::vector<float>{1, 0, 3})};
    parts.arrays["steps"] = {DType::kI64, {1}, raw(std::vector<int64_t>{7})};
    parts.metadata["format"] = "pt";
    dense_ = written(parts, folder_);
    write_file(folder_ / "dense", dense_);
    OutputFile file(folder_ / "stored", true);
    write_bitmask(read_checkpoint(folder_ / "dense", ModelFormat::kSafetensors), file);
    file.commit();
    stored_ = read_file(folder_ / "stored");
  }

  std::string expanded(const std::string& stored) const {
    OutputFile file(folder_ / "out", true);
    expand_bitmask(bytes_of(stored), "stored", file);
    file.commit();
    return read_file(folder_ / "out");
  }

  // Refused with exit code 65 and these words.
  void expect_refused(const std::string& stored, const std::string& words, const std::string& what) {
    ++refusals_;
    try {
      expanded(stored);
      ADD_FAILURE() << what << " was expanded";
    } catch (const Error& refused) {
      EXPECT_EQ(refused.code(), Exit::kBadData) << what << ": " << refused.what();
      EXPECT_NE(std::string(refused.what()).find(words), std::string::npos) << what << ": " << refused.what();
    }
  }

  void expect_changed_refused(const std::function<void(Parts&)>& change, const std::string& words) {
    Parts parts = parts_of(stored_);
    change(parts);
    expect_refused(written(parts, folder_), words, words);
  }

  // The stored description of the dense file, unpacked: JSON, zero, gaps.
  std::string description() const {
    const std::string text = parts_of(stored_).metadata.at(kDenseKey);
    std::string packed(text.size(), '\0');
    const int size =
        EVP_DecodeBlock(reinterpret_cast<unsigned char*>(packed.data()),
                        reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
    const auto padding = static_cast<size_t>(std::count(text.begin(), text.end(), '='));
    packed.resize(static_cast<size_t>(size) - padding);
    std::string unpacked;
    unpack_zstd(
        bytes_of(packed),
        [&](Bytes part) { unpacked.append(reinterpret_cast<const char*>(part.data()), part.size()); },
        "description");
    return unpacked;
  }

  static std::string base64(const std::string& bytes) {
    std::string text(bytes.size() * 2 + 8, '\0');
    text.resize(static_cast<size_t>(EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                                                    reinterpret_cast<const unsigned char*>(bytes.data()),
                                                    static_cast<int>(bytes.size()))));
    return text;
  }

  static std::string packed(const std::string& text) {
    std::string result;
    pack_zstd(bytes_of(text),
              [&](Bytes part) { result.append(reinterpret_cast<const char*>(part.data()), part.size()); });
    return result;
  }

  void expect_description_refused(const std::function<void(nlohmann::json&, std::string& gaps)>& change,
                                  const std::string& words) {
    const std::string text = description();
    const size_t zero = text.find('\0');
    nlohmann::json object = nlohmann::json::parse(text.substr(0, zero));
    std::string gaps = text.substr(zero + 1);
    change(object, gaps);
    expect_changed_refused(
        [&](Parts& parts) { parts.metadata[kDenseKey] = base64(packed(object.dump() + '\0' + gaps)); },
        words);
  }

  TemporaryFolder folder_;
  std::string dense_, stored_;
  int refusals_ = 0;
};

TEST_F(Bitmask, ExpandsToTheDenseFileBitForBit) {
  EXPECT_LT(stored_.size(), dense_.size());
  EXPECT_EQ(expanded(stored_), dense_);
}

TEST_F(Bitmask, HasTheLayoutOfCompressedTensors) {
  const Parts parts = parts_of(stored_);
  EXPECT_EQ(parts.arrays.at("a.weight.shape").bytes, raw(std::vector<int64_t>{32, 61}));
  EXPECT_EQ(parts.arrays.at("a.weight.bitmask").shape, (std::vector<int64_t>{32, 8}));
  EXPECT_EQ(parts.arrays.at("a.weight.row_offsets").dtype, DType::kI64);
  EXPECT_EQ(parts.arrays.at("conv.weight.shape").bytes, raw(std::vector<int64_t>{16, 256}));
  EXPECT_TRUE(parts.arrays.contains("a.bias"));
  // Row 0 keeps columns 0, 1 (which is -0), 4, 8, ...
  EXPECT_EQ(static_cast<unsigned char>(parts.arrays.at("a.weight.bitmask").bytes[0]), 0b00010011);
}

TEST_F(Bitmask, RefusesACutFileAtAnyPlace) {
  for (size_t size = 0; size < stored_.size(); size += stored_.size() / 80)
    expect_refused(stored_.substr(0, size), "", "cut");
  EXPECT_GE(refusals_, 80);
}

TEST_F(Bitmask, NeverGivesOtherBytesForADamagedFile) {
  int refused = 0;
  for (size_t at = 0; at < stored_.size(); at += stored_.size() / 300) {
    std::string damaged = stored_;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
    try {
      EXPECT_EQ(expanded(damaged), dense_) << at;  // a blank of the header, or another entry of the metadata
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData) << failure.what();
      ++refused;
    }
  }
  EXPECT_GE(refused, 280);
}

TEST_F(Bitmask, NamesWhatDoesNotFit) {
  const auto set_shape = [](const std::vector<int64_t>& shape) {
    return [shape](Parts& p) {
      p.arrays["a.weight.shape"] = {DType::kI64, {static_cast<int64_t>(shape.size())}, raw(shape)};
    };
  };
  for (const auto& shape : std::vector<std::vector<int64_t>>{{31, 61},
                                                             {33, 61},
                                                             {32, 65},
                                                             {32, 56},
                                                             {0, 61},
                                                             {32, 0},
                                                             {-1, 61},
                                                             {32, -5},
                                                             {INT64_MAX, 8},
                                                             {INT64_MAX, INT64_MAX},
                                                             {1, 2048},
                                                             {256, 8},
                                                             {int64_t{1} << 61, 64}})
    expect_changed_refused(set_shape(shape),
                           shape[0] == 1 || shape[0] == 256 ? "row offsets" : "bitmask of 256 bytes");
  expect_changed_refused(set_shape({32, 60}), "a bit behind the end of row");
  expect_changed_refused(set_shape({32, 62}), "places its arrays where");
  expect_changed_refused(set_shape({32, 61, 1}), "a shape of other than two numbers");
  expect_changed_refused(set_shape({32}), "a shape of other than two numbers");
  for (const char* part : {".shape", ".bitmask", ".row_offsets", ".compressed"}) {
    const std::string name = std::string("a.weight") + part;
    expect_changed_refused([&](Parts& p) { p.arrays.erase(name); }, part);
    expect_changed_refused(
        [&](Parts& p) {
          p.arrays[name].dtype = p.arrays[name].dtype == DType::kU8 ? DType::kI8 : DType::kU64;
          if (part == std::string(".compressed")) p.arrays[name].dtype = DType::kI32;
        },
        part == std::string(".compressed") ? "no float type" : part);
  }
  expect_changed_refused([](Parts& p) { p.arrays["a.weight.bitmask"].bytes[3] ^= 1; }, "of 'stored'");
  expect_changed_refused(
      [](Parts& p) {
        for (char& c : p.arrays["a.weight.bitmask"].bytes) c = '\xff';
      },
      "a bit behind the end of row 0");
  expect_changed_refused([](Parts& p) { p.arrays["conv.weight.bitmask"].bytes.back() ^= 1; }, "values");
  expect_changed_refused(
      [](Parts& p) {
        for (char& c : p.arrays["conv.weight.bitmask"].bytes) c = '\xff';
      },
      "begins row 1 at");
  for (const int64_t offset : {int64_t{-1}, int64_t{1}, INT64_MAX}) {
    expect_changed_refused(
        [&](Parts& p) { std::memcpy(p.arrays["a.weight.row_offsets"].bytes.data(), &offset, 8); },
        "begins row 0 at");
  }
  expect_changed_refused(
      [](Parts& p) {
        p.arrays["a.weight.row_offsets"] = {DType::kI64, {31}, std::string(size_t{31} * 8, '\0')};
      },
      "31 row offsets for 32 rows");
  const auto resize_values = [](int64_t by) {
    return [by](Parts& p) {
      Content& values = p.arrays["conv.weight.compressed"];
      values.shape[0] += by;
      values.bytes.resize(static_cast<size_t>(values.shape[0]) * 2);
    };
  };
  expect_changed_refused(resize_values(1), "its bitmask names");
  expect_changed_refused(resize_values(-1), "has more bits set than");
  expect_changed_refused(resize_values(-500), "has more bits set than");
  expect_changed_refused([](Parts& p) { p.arrays["conv.weight.compressed"].bytes[4] ^= 1; }, "SHA-256");
  expect_changed_refused([](Parts& p) { p.arrays.erase("a.bias"); }, "no 'a.bias.shape'");
  expect_changed_refused([](Parts& p) { p.metadata.erase(kDenseKey); }, "is not stored as a bitmask");
}

TEST_F(Bitmask, RefusesADamagedDescription) {
  const std::string text = description();
  const std::string frame = packed(text);
  const auto set = [&](const std::string& value) {
    return [value](Parts& p) { p.metadata[kDenseKey] = value; };
  };
  expect_changed_refused(set(""), "is no base64");
  expect_changed_refused(set("abc"), "is no base64");
  expect_changed_refused(set("????"), "is no base64");
  expect_changed_refused(set(base64("plain text")), "is no zstd frame");
  expect_changed_refused(set(base64(frame + "x")), "is followed by 1 other bytes");
  for (size_t size = 1; size < frame.size(); size += frame.size() / 30)
    expect_changed_refused(set(base64(frame.substr(0, size))), kDenseKey);
  for (size_t at = 0; at < frame.size(); at += frame.size() / 60) {
    std::string damaged = frame;
    if (at == 4) continue;  // the descriptor has a bit that no reader looks at
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    expect_changed_refused(set(base64(damaged)), kDenseKey);
  }
  expect_changed_refused(set(base64(packed("no zero"))), "is cut");
  expect_changed_refused(set(base64(packed(std::string("{") + '\0'))), kDenseKey);
  expect_changed_refused(set(base64(packed(std::string("[]") + '\0'))), "version that is not known");
  std::string long_text;
  long_text.resize(110'000'000, ' ');
  expect_changed_refused(set(base64(packed(long_text))), "at most");
  using Json = nlohmann::json;
  for (const Json& version : {Json(2), Json("1"), Json(nullptr), Json(-1)})
    expect_description_refused([&](Json& object, std::string&) { object["version"] = version; }, "version");
  for (const char* key : {"size", "sha256", "arrays"}) {
    expect_description_refused([&](Json& object, std::string&) { object.erase(key); }, "lacks its size");
    expect_description_refused([&](Json& object, std::string&) { object[key] = nullptr; }, "lacks its size");
  }
  for (const Json& item : {Json(1), Json::array(), Json::array({"a"}), Json::array({1, 2}),
                           Json::array({"a", -1}), Json::array({"a", "b"})})
    expect_description_refused([&](Json& object, std::string&) { object["arrays"][0] = item; },
                               "without name and place");
  for (const uint64_t place : {uint64_t{0}, uint64_t{8}, UINT64_MAX, uint64_t{1} << 40})
    expect_description_refused([&](Json& object, std::string&) { object["arrays"][1][1] = place; },
                               "places its arrays where");
  for (const uint64_t size : {uint64_t{0}, UINT64_MAX, uint64_t{1} << 50})
    expect_description_refused([&](Json& object, std::string&) { object["size"] = size; },
                               "places its arrays where");
  expect_description_refused([](Json&, std::string& gaps) { gaps += "more"; }, "bytes left over");
  expect_description_refused([](Json&, std::string& gaps) { gaps.pop_back(); }, "places its arrays where");
  expect_description_refused([](Json&, std::string& gaps) { gaps[9] ^= 1; }, "SHA-256");
  expect_description_refused([](Json& object, std::string&) { object["sha256"] = "00"; }, "SHA-256");
  expect_description_refused([](Json& object, std::string&) { object["arrays"][0][0] = "nowhere"; },
                             "nowhere");
  EXPECT_GE(refusals_, 120);
}

TEST(Zstd, GivesBackWhatItPacked) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{3'000'000}}) {
    std::string text(size, 'x');
    for (size_t i = 0; i < size; i += 3) text[i] = static_cast<char>(i * 7 / 5);
    std::string packed, unpacked;
    pack_zstd(bytes_of(text),
              [&](Bytes part) { packed.append(reinterpret_cast<const char*>(part.data()), part.size()); });
    EXPECT_EQ(packed_zstd_bytes(bytes_of(text)), packed.size());
    unpack_zstd(
        bytes_of(packed),
        [&](Bytes part) { unpacked.append(reinterpret_cast<const char*>(part.data()), part.size()); }, "x");
    EXPECT_EQ(unpacked, text);
    for (size_t cut = 0; cut < packed.size(); cut += std::max<size_t>(1, packed.size() / 40))
      EXPECT_THROW(unpack_zstd(
                       bytes_of(packed).first(cut), [](Bytes) {}, "x"),
                   Error)
          << size << " " << cut;
  }
}

TEST(Zstd, RefusesAFrameThatDoesNotNameItsSize) {
  // "hello" by `zstd` from a pipe.
  const std::string frame("\x28\xb5\x2f\xfd\x04\x58\x29\x00\x00hello\x23\x9b\x93\x9f", 18);
  EXPECT_THROW(unpack_zstd(
                   bytes_of(frame), [](Bytes) {}, "x"),
               Error);
}

}  // namespace
}  // namespace mcompress
