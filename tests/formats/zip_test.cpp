#include "mcompress/formats/zip.h"

#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "test_files.h"

namespace mcompress {
namespace {

using testing::TemporaryFolder;

TEST(Zip, ReadsBackWhatItWroteAlignedTo64Bytes) {
  const TemporaryFolder folder;
  const std::string weights(1000, '\x7f');
  std::string code;
  for (int i = 0; i < 500; ++i) code += "x" + std::to_string(i) + "\n";
  OutputFile file(folder / "a.zip", false);
  ZipWriter writer(file);
  writer.add("m/data/0", std::as_bytes(std::span(weights)), false);
  writer.add("m/code/c.py", std::as_bytes(std::span(code)), true);
  writer.finish();
  file.commit();

  const MappedFile map(folder / "a.zip");
  const auto entries = read_zip(map.bytes(), "a.zip");
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(unpack(entries[0], "a.zip"), weights);
  EXPECT_EQ((entries[0].data.data() - map.bytes().data()) % 64, 0);
  EXPECT_TRUE(entries[1].deflated);
  EXPECT_EQ(unpack(entries[1], "a.zip"), code);
}

TEST(Zip, FindsOneChangedBit) {
  const TemporaryFolder folder;
  {
    OutputFile file(folder / "a.zip", false);
    ZipWriter writer(file);
    writer.add("m/data/0", std::as_bytes(std::span("weights")), false);
    writer.finish();
    file.commit();
  }
  std::string content = testing::read_file(folder / "a.zip");
  content[content.find("weights")] ^= 1;
  const auto entries = read_zip(std::as_bytes(std::span(content)), "a.zip");
  EXPECT_THROW(check_crcs(entries, "a.zip"), Error);
}

// Archives of Python's zipfile layout, changed a field at a time.
std::string make_zip(const std::string& name, const std::string& content, uint32_t crc = 0) {
  const auto number = [](auto value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  const auto size = static_cast<uint32_t>(content.size());
  const std::string fields = number(uint16_t{20}) + number(uint16_t{0}) + number(uint16_t{0}) +
                             number(uint32_t{0}) + number(crc) + number(size) + number(size) +
                             number(static_cast<uint16_t>(name.size())) + number(uint16_t{0});
  const std::string local = "PK\x03\x04" + fields + name + content;
  const std::string central = "PK\x01\x02" + number(uint16_t{20}) + fields + number(uint16_t{0}) +
                              number(uint16_t{0}) + number(uint16_t{0}) + number(uint32_t{0}) +
                              number(uint32_t{0}) + name;
  return local + central + "PK\x05\x06" + number(uint32_t{0}) + number(uint16_t{1}) + number(uint16_t{1}) +
         number(static_cast<uint32_t>(central.size())) + number(static_cast<uint32_t>(local.size())) +
         number(uint16_t{0});
}

std::string refusal(const std::string& archive) {
  try {
    const auto entries = read_zip(std::as_bytes(std::span(archive)), "a.zip");
    check_crcs(entries, "a.zip");
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData);
    return failure.what();
  }
  return "accepted";
}

TEST(Zip, RefusesWhatTwoReadersCouldUnderstandDifferently) {
  const std::string good = make_zip("m/data", "abc");
  const size_t central = good.find("PK\x01\x02");
  const size_t end = good.find("PK\x05\x06");
  const auto changed = [&](size_t at, char value) {
    std::string archive = good;
    archive[at] = value;
    return refusal(archive);
  };
  const auto has = [](const std::string& text, const char* words) {
    return text.find(words) != std::string::npos;
  };
  EXPECT_EQ(refusal(good), "accepted");
  EXPECT_TRUE(has(changed(central + 8, 1), "encrypted"));
  EXPECT_TRUE(has(changed(central + 10, 9), "unknown method"));
  EXPECT_TRUE(has(changed(8, 8), "local header that differs"));
  EXPECT_TRUE(has(changed(31, 'X'), "local header that differs"));
  EXPECT_TRUE(has(changed(0, 'X'), "no local header"));
  EXPECT_TRUE(has(changed(central, 'X'), "damaged central directory"));
  EXPECT_TRUE(has(changed(central + 20, 4), "stored with two sizes"));
  EXPECT_TRUE(has(changed(central + 27, 127), "stored with two sizes"));
  EXPECT_TRUE(has(changed(central + 23, 127), "beyond the end"));
  EXPECT_TRUE(has(changed(central + 45, 127), "no local header"));
  EXPECT_TRUE(has(changed(end + 4, 1), "several disks"));
  EXPECT_TRUE(has(changed(end + 10, 9), "does not fit"));
  EXPECT_TRUE(has(changed(end + 19, 127), "does not fit"));
  EXPECT_TRUE(has(refusal(good.substr(0, good.size() - 10)), "no central directory"));
  EXPECT_TRUE(has(refusal(make_zip("../x", "abc")), "unsafe name"));
  EXPECT_TRUE(has(refusal(make_zip("/x", "abc")), "unsafe name"));
  EXPECT_TRUE(has(refusal(make_zip("a\\x", "abc")), "unsafe name"));
  EXPECT_TRUE(has(refusal(make_zip("", "abc")), "unsafe name"));
  EXPECT_TRUE(has(refusal(make_zip("m", "abc", 1)), "CRC does not match"));
}

TEST(Zip, RefusesBombs) {
  const TemporaryFolder folder;
  OutputFile file(folder / "bomb", false);
  ZipWriter writer(file);
  const std::string zeros(10 << 20, '\0');
  writer.add("m/zeros", std::as_bytes(std::span(zeros)), true);
  writer.finish();
  file.commit();
  EXPECT_NE(refusal(testing::read_file(folder / "bomb")).find("at most 100 times"), std::string::npos);
}

}  // namespace
}  // namespace mcompress
