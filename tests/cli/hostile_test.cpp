// Hostile files through the whole program: the right code, quickly, in little memory, no file made.
#include <chrono>

#include <sys/resource.h>

#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using namespace std::string_literals;

// Peak memory of the children so far grows only where one of them exceeds it.
long children_peak_kib() {
  struct rusage usage {};
  ::getrusage(RUSAGE_CHILDREN, &usage);
  return usage.ru_maxrss;
}

std::string u64(uint64_t value) { return {reinterpret_cast<const char*>(&value), sizeof(value)}; }

std::string repeat(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

// Files of up to some megabytes, each built to make a careless reader crash, hang or ask for memory.
std::vector<std::pair<std::string, std::string>> hostile_files() {
  std::string many = "{";
  for (int i = 0; i < 20'000; ++i)
    many += "\"t" + std::to_string(i) + R"(":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,1]},)";
  many.back() = '}';
  const std::string pickle_header = "\x80\x02"s;
  return {
      {"safetensors header of 2^62 bytes", u64(uint64_t{1} << 62) + "{"},
      {"safetensors tensor of 2^60 bytes",
       u64(70) + R"({"a":{"dtype":"U8","shape":[1152921504606846976],"data_offsets":[0,1]}})" +
           std::string(100, ' ')},
      {"20,000 lying tensors", u64(many.size()) + many},
      {"JSON nested a million deep", u64(1'000'005) + R"({"a":)" + std::string(1'000'000, '[')},
      {"pickle of lists nested 2,000,000 deep",
       "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}." +
           pickle_header + repeat("]", 2'000'000) + repeat("a", 1'999'999) + "."},
      {"legacy file that ends after its magic", "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."s},
      {"zip with a directory of 65,535 entries in 22 bytes",
       "PK\x05\x06\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0"s},
      {"five megabytes of zip signatures", repeat("PK\x03\x04", 1'250'000)},
      {"five megabytes of zeros", std::string(5'000'000, '\0')},
      {"five megabytes of 0xff", std::string(5'000'000, '\xff')}};
}

TEST(Hostile, FilesAreRefusedInUnderASecondAnd64MiB) {
  const TemporaryFolder folder;
  run_mcompress("inspect " + shipped("fashion_mlp.pt"));
  const long idle = children_peak_kib();
  for (const auto& [name, content] : hostile_files()) {
    write_file(folder / "model", content);
    const auto start = std::chrono::steady_clock::now();
    const Outcome run =
        run_mcompress("quantize " + (folder / "model") + " -o " + (folder / "out"), "timeout 10");
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    EXPECT_EQ(run.exit_code, 65) << name << ": " << run.err;
    EXPECT_EQ(run.out, "") << name;
    EXPECT_FALSE(std::filesystem::exists(folder / "out")) << name;
    EXPECT_LT(spent.count(), 5.0) << name;  // a hang, not a speed
    EXPECT_LT(children_peak_kib() - idle, 64 << 10) << name;
  }
}

TEST(Hostile, NaNWeightsAreNamedAndNothingIsWritten) {
  const TemporaryFolder folder;
  const float values[2] = {1.0F, std::numeric_limits<float>::quiet_NaN()};
  const std::string header = R"({"fc.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}})";
  write_file(folder / "m",
             u64(header.size()) + header + std::string(reinterpret_cast<const char*>(values), 8));
  const Outcome run = run_mcompress("quantize " + (folder / "m") + " -o " + (folder / "out"));
  EXPECT_EQ(run.exit_code, 65);
  EXPECT_TRUE(contains(run.err, "tensor 'fc.weight' holds NaN, infinity")) << run.err;
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  const auto listed = nlohmann::json::parse(run_mcompress("inspect --json -q " + (folder / "m")).out);
  EXPECT_EQ(listed["layers"][0]["non_finite"], 1);
}

// An output folder is replaced in whole, so it must not be one that holds anything else.
TEST(Hostile, ForceLeavesFoldersThatAreNoModelAlone) {
  const TemporaryFolder folder;
  const float value = 1;
  const std::string header = R"({"fc.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}})";
  std::filesystem::create_directories(folder / "work/model");
  write_file(folder / "work/model/config.json", "{}");
  write_file(folder / "work/model/model.safetensors",
             u64(header.size()) + header + std::string(reinterpret_cast<const char*>(&value), 4));
  write_file(folder / "work/thesis.txt", "x");
  std::filesystem::create_directories(folder / "home/letters");
  const std::string run = "quantize --force " + (folder / "work/model") + " -o ";
  for (const auto& [target, words] : std::vector<std::pair<std::string, std::string>>{
           {folder / "work", "is a folder around"}, {folder / "home", "holds no model"}}) {
    const Outcome outcome = run_mcompress(run + target);
    EXPECT_EQ(outcome.exit_code, 73);
    EXPECT_TRUE(contains(outcome.err, words)) << outcome.err;
  }
  EXPECT_EQ(read_file(folder / "work/thesis.txt"), "x");
  EXPECT_TRUE(std::filesystem::exists(folder / "home/letters"));
  EXPECT_EQ(run_mcompress(run + (folder / "out")).exit_code, 0);
  EXPECT_EQ(run_mcompress(run + (folder / "out")).exit_code, 0);  // a model is replaced
  const Outcome inside = run_mcompress(run + (folder / "out") + " --report " + (folder / "out/config.json"));
  EXPECT_EQ(inside.exit_code, 73);
  EXPECT_TRUE(contains(inside.err, "lies inside the output")) << inside.err;
}

TEST(Hostile, AFlippedWeightByteOfATorchScriptFileIsFound) {
  const TemporaryFolder folder;
  std::string content = read_file(shipped("fashion_mlp.pt"));
  content[content.size() / 2] ^= 4;
  write_file(folder / "m.pt", content);
  const Outcome run = run_mcompress("inspect " + (folder / "m.pt"));
  EXPECT_EQ(run.exit_code, 65);
  EXPECT_TRUE(contains(run.err, "CRC does not match")) << run.err;
}

TEST(Hostile, CutTorchScriptFilesAreRefused) {
  const TemporaryFolder folder;
  const std::string content = read_file(shipped("fashion_cnn.pt"));
  for (const size_t size : {size_t{1}, size_t{100}, content.size() / 2, content.size() - 1}) {
    write_file(folder / "m.pt", content.substr(0, size));
    EXPECT_EQ(run_mcompress("inspect " + (folder / "m.pt")).exit_code, 65) << size;
  }
}

TEST(Hostile, ReadOnlyTargetIsAPermissionError) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  const TemporaryFolder folder;
  std::filesystem::permissions(folder.path(),
                               std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  EXPECT_EQ(run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q")).exit_code, 77);
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_all);
}

TEST(Hostile, FullFileSystemExitsWith74AndStaysEmpty) {
  const TemporaryFolder folder;
  const std::string mount = "mount -t tmpfs -o size=256k none " + folder.path() + " 2>/dev/null";
  if (::geteuid() != 0 || std::system(mount.c_str()) != 0) GTEST_SKIP() << "needs the right to mount";
  const Outcome run = run_mcompress("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q"));
  EXPECT_EQ(run.exit_code, 74) << run.err;
  EXPECT_TRUE(contains(run.err, "make room")) << run.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_EQ(std::system(("umount " + folder.path()).c_str()), 0);
}

TEST(EvalCommand, IsOverWhenItEndsThoughItLeftAProcessBehind) {
  const TemporaryFolder folder;
  const std::string command = "sleep 20 & echo \"{}\" # {model}";
  const Outcome run = run_mcompress(
      "evaluate " + shipped("fashion_mlp.pt") + " --eval-command '" + command + "'", "timeout 10");
  EXPECT_EQ(run.exit_code, 0) << run.err;
}

TEST(Interrupt, TermStopsAnEvaluationWithItsSignal) {
  const TemporaryFolder folder;
  const Outcome run = run_mcompress("quantize " + shipped("fashion_cnn.pt") + " --batch-size 1 -o " +
                                        (folder / "q") + " --eval-data " + kFashion,
                                    "timeout --preserve-status -s TERM -k 5 1");
  EXPECT_EQ(run.exit_code, 128 + 15) << run.err;
  EXPECT_TRUE(contains(run.err, "stopped by signal 15")) << run.err;
}

}  // namespace
}  // namespace mcompress::testing
