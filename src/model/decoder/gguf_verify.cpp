#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/formats/gguf.h"
#include "mcompress/model/decoder.h"
#include "mcompress/model/packed_verify.h"
#include "mcompress/model/pieces.h"
#include "source.h"

namespace mcompress {

namespace {

int64_t count_non_finite(const GgufTensor& tensor) {
  constexpr int64_t kPiece = 4096;  // blocks
  const GgufBlock block = block_of(tensor.type);
  const auto blocks = static_cast<int64_t>(tensor.bytes.size() / block.bytes);
  std::atomic<int64_t> count = 0;
  at::parallel_for(0, (blocks + kPiece - 1) / kPiece, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t begin = piece * kPiece, size = std::min(kPiece, blocks - begin);
      const at::Tensor values = at::empty({size * block.values});
      dequantize_gguf(tensor.type,
                      tensor.bytes.subspan(static_cast<uint64_t>(begin) * block.bytes,
                                           static_cast<uint64_t>(size) * block.bytes),
                      values.data_ptr<float>());
      count += count_elements_of(values).non_finite;
    }
  });
  return count;
}

// What the lists of the tokenizer say beside each other, and beside the embedding.
void check_tokens(const GgufFile& file, std::vector<Finding>& findings) {
  const auto* tokens = find_value<std::vector<std::string>>(file, "tokenizer.ggml.tokens");
  if (tokens == nullptr) return;
  const auto count = static_cast<int64_t>(tokens->size());
  const auto expect = [&](const char* what, const char* entries, int64_t size) {
    if (size != count)
      findings.push_back({what, fmt::format("has {} {}, and there are {} tokens", size, entries, count)});
  };
  const GgufTensor* embedding = find_tensor(file, "token_embd.weight");
  if (embedding != nullptr && !embedding->shape.empty())
    expect("token_embd.weight", "rows", embedding->shape[0]);
  if (const auto* types = find_value<std::vector<int64_t>>(file, "tokenizer.ggml.token_type"))
    expect("tokenizer.ggml.token_type", "entries", static_cast<int64_t>(types->size()));
  if (const auto* scores = find_value<std::vector<double>>(file, "tokenizer.ggml.scores"))
    expect("tokenizer.ggml.scores", "entries", static_cast<int64_t>(scores->size()));
  constexpr int64_t kNone = std::numeric_limits<uint32_t>::max();
  for (const auto& [key, value] : file.metadata) {
    if (!key.starts_with("tokenizer.ggml.") || !key.ends_with("_token_id")) continue;
    const auto* id = std::get_if<int64_t>(&value);
    if (id == nullptr) {
      findings.push_back({key, "is not a whole number"});
    } else if (*id != kNone && (*id < 0 || *id >= count)) {
      findings.push_back({key, fmt::format("is {}, and there are {} tokens", *id, count)});
    }
  }
}

// Why the tensors cannot be held against an architecture; empty where they can.
std::string part_of_a_model(const GgufFile& file) {
  const auto* parts = find_value<int64_t>(file, "split.count");
  if (parts != nullptr && *parts > 1) return fmt::format("it is one of {} files", *parts);
  const auto* type = find_value<std::string>(file, "general.type");
  if (type != nullptr && *type != "model") return fmt::format("it is of type '{}'", *type);
  return "";
}

}  // namespace

Verification verify_gguf(const std::string& path) {
  Verification result;
  const MappedFile map(path);
  const auto leave = [&](const std::string& why) {
    result.notes.push_back("tensors are not held against an architecture: " + why);
  };
  try {
    const GgufFile file = read_gguf(map.bytes(), path);
    for (const GgufTensor& tensor : file.tensors) {
      check_interrupt();
      if (block_of(tensor.type).values > 1) ++result.checked;
      if (const int64_t count = count_non_finite(tensor); count > 0)
        result.findings.push_back(
            {tensor.name, fmt::format("has {} values that are NaN or infinite", count)});
      map.drop(tensor.bytes);
    }
    check_tokens(file, result.findings);
    if (const std::string why = part_of_a_model(file); !why.empty()) {
      leave(why);
    } else {
      Decoder(path, at::kFloat);
    }
  } catch (const Unsupported& why) {
    leave(why.what());
  } catch (const Error& failure) {
    if (failure.code() != Exit::kBadData) throw;
    result.findings.push_back({path, failure.what()});
  }
  return result;
}

}  // namespace mcompress
