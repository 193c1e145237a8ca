#include "mcompress/data/text.h"
#include "mcompress/measure/perplexity.h"
#include "mcompress/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "test_files.h"

namespace mcompress {
namespace {

using testing::TemporaryFolder;
using testing::write_file;

const std::string kFolder = MCOMPRESS_TESTS_DIR "/data/decoders/";

std::vector<int32_t> some_ids(int32_t count, int32_t vocabulary) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back((i * 37 + i / 7) % vocabulary);
  return ids;
}

// The mean loss, from the logits of each window by itself in double.
double loss_by_hand(const Decoder& model, const TokenWindows& windows) {
  double sum = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < windows.ids.size(0); ++i) {
    const at::Tensor ids = windows.ids.slice(0, i, i + 1), hidden = model.embed(ids);
    for (int64_t block = 0; block < model.config().blocks; ++block) model.run_block(block, hidden);
    const at::Tensor scores = model.logits(hidden[0]).to(at::kDouble).log_softmax(1);
    for (int64_t k = ids.size(1) - windows.count(i); k < ids.size(1); ++k) {
      sum -= scores[k - 1][ids[0][k].item<int64_t>()].item<double>();
      ++count;
    }
  }
  return sum / static_cast<double>(count);
}

TEST(CutWindows, CountsEachTokenOnce) {
  const TokenWindows apart = cut_windows(some_ids(35, 100), 10, 0, 0);
  EXPECT_EQ(apart.ids.sizes(), (std::vector<int64_t>{3, 10}));
  EXPECT_EQ(apart.count(0) + apart.count(1) + apart.count(2), 27);
  const TokenWindows strided = cut_windows(some_ids(35, 100), 10, 5, 0);
  EXPECT_EQ(strided.ids.size(0), 6);  // the last begins at 25
  EXPECT_EQ(strided.count(0), 9);
  EXPECT_EQ(strided.count(5), 5);
  EXPECT_EQ(strided.ids[1][0].item<int64_t>(), some_ids(35, 100)[5]);
  EXPECT_EQ(cut_windows(some_ids(35, 100), 10, 0, 2).ids.size(0), 2);
  EXPECT_THROW(cut_windows(some_ids(9, 100), 10, 0, 0), Error);
  EXPECT_THROW(cut_windows(some_ids(35, 100), 10, 11, 0), Error);
}

TEST(ReadText, JoinsRowsAndTextsOfJsonLines) {
  const TemporaryFolder folder;
  write_file(folder / "a.txt", " \n = A = \n \n b c\n");
  TextOptions options;
  EXPECT_EQ(read_text(folder / "a.txt", options), " \n = A = \n \n b c\n");
  options.layout = TextOptions::Layout::kRows;
  EXPECT_EQ(read_text(folder / "a.txt", options), "\n\n = A = \n\n\n\n\n b c\n");
  options = {.field = "body"};
  write_file(folder / "a.jsonl", "{\"body\": \"x\\ny\"}\n\n{\"body\": \"z\", \"text\": \"no\"}");
  EXPECT_EQ(read_text(folder / "a.jsonl", options), "x\ny\n\nz");
  write_file(folder / "d.jsonl", "{\"body\": \"\"}\n{\"body\": \"z\"}\n");
  EXPECT_EQ(read_text(folder / "d.jsonl", options), "\n\nz");
  const auto answer = [&](const std::string& name) {
    try {
      read_text(folder / name, options);
      return std::string();
    } catch (const Error& failure) {
      return std::string(failure.what());
    }
  };
  write_file(folder / "b.jsonl", "{\"body\": \"x\"}\n{\"text\": \"y\"}\n");
  EXPECT_NE(answer("b.jsonl").find("line 2 of"), std::string::npos);
  write_file(folder / "c.jsonl", "{\"body\": \n");
  EXPECT_NE(answer("c.jsonl").find("line 1 of"), std::string::npos);
  write_file(folder / "empty.txt", "");
  EXPECT_NE(answer("empty.txt").find("is empty"), std::string::npos);
  EXPECT_NE(answer("none.txt").find("does not exist"), std::string::npos);
}

TEST(MeasureText, IsTheLossOfEachWindowByItself) {
  const Decoder model(kFolder + "qwen3", at::kFloat);
  for (const int64_t stride : {0, 16}) {
    const TokenWindows windows = cut_windows(some_ids(400, 96), 64, stride, 0);
    const TextLoss loss = measure_text(model, windows);
    EXPECT_NEAR(loss.nats, loss_by_hand(model, windows), 1e-5) << stride;
    EXPECT_EQ(loss.windows, windows.ids.size(0));
    EXPECT_EQ(loss.tokens, stride == 0 ? 6 * 63 : 63 + 21 * 16);
    EXPECT_NEAR(loss.perplexity(), std::exp(loss.nats), 1e-9);
    EXPECT_GT(*loss.perplexity_error(), 0);
  }
  EXPECT_FALSE(measure_text(model, cut_windows(some_ids(64, 96), 64, 0, 0)).nats_error);
  // More tokens than are run together, and windows longer than the logits that are held at once.
  const TokenWindows many = cut_windows(some_ids(2700, 96), 300, 0, 0);
  EXPECT_NEAR(measure_text(model, many).nats, loss_by_hand(model, many), 1e-5);
}

TEST(MeasureText, TakesItsErrorFromTheMeansOfTheWindows) {
  const Decoder model(kFolder + "qwen3", at::kFloat);
  const TokenWindows windows = cut_windows(some_ids(120, 96), 40, 0, 0);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < 3; ++i) {
    const double loss = loss_by_hand(model, {windows.ids.slice(0, i, i + 1), 39, 39});
    sum += loss;
    squares += loss * loss;
  }
  const double variance = (squares - sum * sum / 3) / 2;
  EXPECT_NEAR(*measure_text(model, windows).nats_error, std::sqrt(variance / 3), 1e-5);
}

TEST(MeasureText, RefusesLogitsThatAreNotFinite) {
  const TemporaryFolder folder;
  std::filesystem::copy(kFolder + "qwen3", folder / "m");
  std::string content = testing::read_file(folder / "m/model.safetensors");
  const std::string name = "\"model.norm.weight\"";
  const size_t at = content.find("data_offsets\":[", content.find(name)) + 15;
  uint64_t header = 0;
  std::memcpy(&header, content.data(), sizeof(header));
  const float infinity = INFINITY;
  std::memcpy(content.data() + 8 + header + std::stoull(content.substr(at)), &infinity, sizeof(infinity));
  write_file(folder / "m/model.safetensors", content);
  try {
    measure_text(Decoder(folder / "m", at::kFloat), cut_windows(some_ids(64, 96), 32, 0, 0));
    FAIL();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData);
    EXPECT_NE(std::string(failure.what()).find("logits for window 1 are not finite"), std::string::npos)
        << failure.what();
  }
}

TEST(CompareText, FindsNoDistanceToItselfAndTheOneByHandToAnother) {
  const Decoder model(kFolder + "qwen3", at::kFloat), other(kFolder + "qwen2", at::kFloat);
  const TokenWindows windows = cut_windows(some_ids(200, 96), 40, 0, 0);
  const TextComparison same = compare_text(model, model, windows);
  EXPECT_EQ(same.divergence.largest, 0);
  EXPECT_EQ(same.divergence.same_top1.value(), 1);
  EXPECT_EQ(same.divergence.right_token_change, 0);
  const TextComparison apart = compare_text(model, other, windows);
  EXPECT_NEAR(apart.model.nats, measure_text(model, windows).nats, 1e-9);
  EXPECT_NEAR(apart.reference.nats, measure_text(other, windows).nats, 1e-9);
  // All of it again, a window at a time in double.
  std::vector<double> divergences;
  double change = 0;
  int64_t same_top1 = 0;
  for (int64_t i = 0; i < windows.ids.size(0); ++i) {
    const auto probabilities = [&](const Decoder& which) {
      const at::Tensor hidden = which.embed(windows.ids.slice(0, i, i + 1));
      for (int64_t block = 0; block < which.config().blocks; ++block) which.run_block(block, hidden);
      return which.logits(hidden[0].slice(0, 0, 39)).to(at::kDouble).softmax(1);
    };
    const at::Tensor p = probabilities(other), q = probabilities(model);
    const at::Tensor right = windows.ids[i].slice(0, 1, 40).unsqueeze(1);
    change += (q.gather(1, right) - p.gather(1, right)).sum().item<double>();
    same_top1 += (p.argmax(1) == q.argmax(1)).sum().item<int64_t>();
    const at::Tensor kl = (p * (p.log() - q.log())).sum(1);
    divergences.insert(divergences.end(), kl.data_ptr<double>(), kl.data_ptr<double>() + kl.numel());
  }
  std::sort(divergences.begin(), divergences.end());
  ASSERT_EQ(divergences.size(), 195U);
  double mean = 0;
  for (const double value : divergences) mean += value / 195;
  EXPECT_NEAR(apart.divergence.mean, mean, 1e-4 * mean);
  EXPECT_NEAR(apart.divergence.p95, divergences[185], 1e-3 * divergences[185]);  // 95 % of 195 is 185.25
  EXPECT_NEAR(apart.divergence.p99, divergences[193], 1e-3 * divergences[193]);
  EXPECT_NEAR(apart.divergence.largest, divergences[194], 1e-3 * divergences[194]);
  EXPECT_EQ(apart.divergence.same_top1.count, same_top1);
  EXPECT_NEAR(apart.divergence.right_token_change, change / 195, 1e-5);
  EXPECT_THROW(compare_text(model, Decoder(kFolder + "llama", at::kFloat), windows), Error);
}

}  // namespace
}  // namespace mcompress
