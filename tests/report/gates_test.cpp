#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "mcompress/report/report.h"

namespace mcompress {
namespace {

Report report_with(double before, double after, uint64_t bytes_before, uint64_t bytes_after) {
  Report report;
  report.input = Artifact{"a", "torchscript", "", bytes_before, 1, 1};
  report.output = Artifact{"b", "torchscript", "", bytes_after, 1, 1};
  report.before = Metrics{{}, {}, {}, {{"accuracy", before}}};
  report.after = Metrics{{}, {}, {}, {{"accuracy", after}}};
  return report;
}

bool passes(const GateOptions& options, double before, double after) {
  Report report = report_with(before, after, 400, 100);
  return check_gates(options, report);
}

TEST(Gates, AnAbsoluteDropIsOfPointsAndARelativeOneOfTheAccuracyBefore) {
  GateOptions options;
  options.max_accuracy_drop = 0.01;
  EXPECT_TRUE(passes(options, 0.5, 0.49));  // exactly at the limit
  EXPECT_FALSE(passes(options, 0.5, 0.489));
  EXPECT_TRUE(passes(options, 0.5, 0.6));
  options.drop = "relative";
  EXPECT_FALSE(passes(options, 0.5, 0.49));  // 2 % of 0.5
  EXPECT_TRUE(passes(options, 0.5, 0.496));
}

TEST(Gates, TheSizeGateComparesTheFiles) {
  GateOptions options;
  options.min_size_ratio = 4;
  EXPECT_TRUE(passes(options, 1, 1));
  options.min_size_ratio = 4.01;
  EXPECT_FALSE(passes(options, 1, 1));
}

TEST(Gates, AGateWithoutItsNumberIsAUsageError) {
  GateOptions options;
  options.min_agreement = 0.9;
  Report report = report_with(1, 1, 2, 1);
  try {
    check_gates(options, report);
    FAIL();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kUsage);
    EXPECT_NE(std::string(failure.what()).find("--min-agreement"), std::string::npos);
  }
}

}  // namespace
}  // namespace mcompress
