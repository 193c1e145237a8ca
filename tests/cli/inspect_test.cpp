#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

json inspect(const std::string& path) { return json::parse(run_mcompress("inspect --json " + path).out); }

TEST(Inspect, ListsEachWeightWithItsKindAndWhatCanTreatIt) {
  const json result = inspect(shipped("fashion_cnn.pt"));
  EXPECT_EQ(result["format"], "torchscript");
  EXPECT_EQ(result["parameters"], 94866);
  std::map<std::string, json> rows;
  for (const json& row : result["layers"]) rows[row["name"]] = row;
  EXPECT_EQ(rows["fc1.weight"]["kind"], "linear");
  EXPECT_EQ(rows["fc1.weight"]["commands"], json::array({"quantize", "prune"}));
  EXPECT_EQ(rows["conv1.weight"]["kind"], "conv2d");
  EXPECT_EQ(rows["conv1.weight"]["commands"], json::array({"prune"}));
  EXPECT_EQ(rows["conv1.weight"]["obstacle"], "dynamic mode treats no convolutions, static mode does");
  EXPECT_EQ(rows["bn1.running_mean"]["kind"], "other");
  EXPECT_EQ(rows["conv2.weight"]["shape"], json::parse("[48,24,3,3]"));
  EXPECT_EQ(rows["conv2.weight"]["bytes"], 48 * 24 * 9 * 4);
}

TEST(Inspect, SaysWhichWeightsAreTheSame) {
  const TemporaryFolder folder;
  const std::string header = R"({"a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
                             R"("b.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]}})";
  const uint64_t size = header.size();
  const std::string twice(16, '\x3f');
  write_file(folder / "m", std::string(reinterpret_cast<const char*>(&size), 8) + header + twice);
  const json result = inspect(folder / "m");
  EXPECT_EQ(result["layers"][0]["duplicate_of"], nullptr);
  EXPECT_EQ(result["layers"][1]["duplicate_of"], "a.weight");
}

TEST(Inspect, ReportHasTheInput) {
  const json report = report_of("inspect " + shipped("fashion_mlp.pt"));
  EXPECT_EQ(report["input"]["parameters"], 356170);
  EXPECT_EQ(report["output"], nullptr);
}

}  // namespace
}  // namespace mcompress::testing
