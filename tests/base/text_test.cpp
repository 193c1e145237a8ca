#include "mcompress/base/text.h"

#include <gtest/gtest.h>

#include "mcompress/base/error.h"

namespace mcompress {
namespace {

using namespace std::string_literals;

TEST(Printable, MakesControlCharactersVisible) {
  EXPECT_EQ(printable("a\x1b[31m\x07\0b\x7f"s), R"(a\x1b[31m\x07\x00b\x7f)");
  EXPECT_EQ(printable("\xc2\x9b"
                      "1m"),
            "\\xc2\x9b"
            "1m");  // the second byte of U+009B alone controls nothing
}

TEST(Printable, LeavesTextOfEveryLanguage) { EXPECT_EQ(printable("größe £ 重み"), "größe £ 重み"); }

TEST(Printable, KeepsLineEndsWhereAsked) {
  EXPECT_EQ(printable("a\nb"), R"(a\x0ab)");
  EXPECT_EQ(printable("a\nb", Printable::kLines), "a\nb");
}

TEST(Error, CannotControlTheTerminal) {
  EXPECT_STREQ(bad_data("tensor '{}' is cut", "\x1b]0;x"s).what(), R"(tensor '\x1b]0;x' is cut)");
}

}  // namespace
}  // namespace mcompress
