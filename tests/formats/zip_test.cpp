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

}  // namespace
}  // namespace mcompress
