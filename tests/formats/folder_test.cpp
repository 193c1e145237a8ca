// Hugging Face folders: shards, their index, and paths that lead elsewhere.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/formats/safetensors.h"
#include "test_files.h"

namespace mcompress {
namespace {

using testing::TemporaryFolder;
using testing::write_file;

// A shard that holds one float named `name`.
void write_shard(const std::string& path, const std::string& name, float value) {
  OutputFile file(path, true);
  const SafetensorsWriter writer({{name, DType::kF32, {1}}}, {});
  writer.write_header(file);
  writer.write(file, name, 0, std::as_bytes(std::span(&value, 1)));
  file.commit();
}

struct Folder : TemporaryFolder {
  Folder() {
    write_file(*this / "config.json", R"({"model_type": "llama"})");
    write_shard(*this / "model-00001-of-00002.safetensors", "a", 1);
    write_shard(*this / "model-00002-of-00002.safetensors", "b", 2);
    write_index(R"({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})");
  }
  void write_index(const std::string& map) {
    write_file(*this / "model.safetensors.index.json",
               R"({"metadata": {"total_size": 8}, "weight_map": )" + map + "}");
  }
  std::string answer() const {
    try {
      const CheckpointFiles checkpoint = read_checkpoint(path(), detect_model(path()));
      return "arrays: " + std::to_string(checkpoint.arrays.size());
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData);
      return failure.what();
    }
  }
};

bool has(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

TEST(HuggingFaceFolder, ReadsShardsThatAgreeWithTheirIndex) {
  const Folder folder;
  EXPECT_EQ(folder.answer(), "arrays: 2");
}

TEST(HuggingFaceFolder, NamesTheShardThatIsWrong) {
  {
    const Folder folder;
    std::filesystem::remove(folder / "model-00002-of-00002.safetensors");
    EXPECT_TRUE(has(folder.answer(), "shard 'model-00002-of-00002.safetensors'")) << folder.answer();
  }
  {
    const Folder folder;
    write_shard(folder / "model-00002-of-00002.safetensors", "c", 2);
    EXPECT_TRUE(has(folder.answer(), "holds tensor 'c'")) << folder.answer();
  }
  {
    Folder folder;
    folder.write_index(
        R"({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"})");
    EXPECT_TRUE(has(folder.answer(), "lacks tensor 'x'")) << folder.answer();
  }
  {
    const Folder folder;
    write_file(folder / "model-00002-of-00002.safetensors", "version https://git-lfs.github.com/spec/v1\n");
    EXPECT_TRUE(has(folder.answer(), "model-00002-of-00002.safetensors")) << folder.answer();
  }
}

TEST(HuggingFaceFolder, NeverReadsOutsideTheFolder) {
  for (const std::string path :
       {"../x", "/etc/passwd", "a/../../x", "a\\\\x", "..", "sub/x", "", "x\\u0000y"}) {
    Folder folder;
    folder.write_index(R"({"a": ")" + path + R"("})");
    EXPECT_TRUE(has(folder.answer(), "outside the folder")) << path << ": " << folder.answer();
  }
  for (const char* target : {"1", "[]", "{}", "null"}) {
    Folder folder;
    folder.write_index(std::string(R"({"a": )") + target + "}");
    EXPECT_TRUE(has(folder.answer(), "no file name")) << folder.answer();
  }
}

TEST(HuggingFaceFolder, DoesNotHangOnAPipeOrReadADevice) {
  for (const char* kind : {"fifo", "device", "folder"}) {
    const Folder folder;
    const std::string shard = folder / "model-00002-of-00002.safetensors";
    std::filesystem::remove(shard);
    if (std::string(kind) == "fifo") ::mkfifo(shard.c_str(), 0600);
    if (std::string(kind) == "device") ::symlink("/dev/zero", shard.c_str());
    if (std::string(kind) == "folder") ::mkdir(shard.c_str(), 0700);
    EXPECT_TRUE(has(folder.answer(), "not a regular file")) << kind << ": " << folder.answer();
  }
}

TEST(HuggingFaceFolder, RefusesABrokenConfigOrIndex) {
  const auto with = [](const std::string& name, const std::string& content) {
    const Folder folder;
    write_file(folder / name, content);
    return folder.answer();
  };
  EXPECT_TRUE(has(with("config.json", ""), "not valid JSON"));
  EXPECT_TRUE(has(with("config.json", "[]"), "not a JSON object"));
  EXPECT_TRUE(has(with("config.json", "{\"a\":1,\"a\":2}"), "occurs twice"));
  EXPECT_TRUE(has(with("model.safetensors.index.json", "{}"), "no weight_map"));
  EXPECT_TRUE(has(with("model.safetensors.index.json", "{\"weight_map\":[]}"), "no weight_map"));
  EXPECT_TRUE(has(with("model.safetensors.index.json", "nonsense"), "not valid JSON"));
}

}  // namespace
}  // namespace mcompress
