#include "mcompress/base/pattern.h"

#include <gtest/gtest.h>

#include "mcompress/base/error.h"

namespace mcompress {
namespace {

TEST(Pattern, IsFoundAnywhereUnlessAnchored) {
  EXPECT_TRUE(Pattern("fc1").matches("encoder.fc1"));
  EXPECT_FALSE(Pattern("^fc1$").matches("encoder.fc1"));
}

TEST(Pattern, NamesThePlaceOfAMistake) {
  try {
    const Pattern unused("fc(1");
    FAIL();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kUsage);
    EXPECT_NE(std::string(failure.what()).find("at offset 4"), std::string::npos) << failure.what();
  }
}

TEST(Pattern, EndsWhereBacktrackingWouldNot) {
  EXPECT_THROW(Pattern("^(a+)+$").matches(std::string(40, 'a') + "b"), Error);
}

}  // namespace
}  // namespace mcompress
