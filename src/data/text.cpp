#include "mcompress/data/text.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/base/text.h"
#include "mcompress/formats/data_files.h"
#include "mcompress/formats/gzip.h"
#include "mcompress/formats/json.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/model/checkpoint.h"

namespace mcompress {

namespace {

// Calls `use` with each line, without its end, and its number from 1; an empty last line is none.
template <typename Use>
void for_lines(const std::string& text, Use use) {
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    use(text.substr(begin, end - begin), ++number);
    begin = end + 1;
  }
}

std::string texts_of(const std::string& lines, const std::string& path, const std::string& field) {
  std::string all;
  bool first = true;
  for_lines(lines, [&](const std::string& line, int64_t number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) return;
    const nlohmann::json object = parse_json(line, fmt::format("line {} of '{}'", number, path));
    if (!object.is_object() || !object.contains(field) || !object[field].is_string())
      throw bad_data("line {} of '{}' has no text '{}'; name the field with --text-field", number, path,
                     field);
    if (!first) all += "\n\n";
    first = false;
    all += object[field].get<std::string>();
  });
  return all;
}

std::string joined_rows(const std::string& text) {
  std::string all;
  for_lines(text, [&](const std::string& line, int64_t number) {
    if (number > 1) all += "\n\n";
    if (line.find_first_not_of(" \t\r\v\f") != std::string::npos) all += line + "\n";
  });
  return all;
}

// The one array of a file that holds ids.
Array array_of_ids(Bytes bytes, const std::string& path) {
  if (path.ends_with(".npy")) return read_npy(bytes, path);
  SafetensorsFile file = read_safetensors(bytes, path);
  if (file.arrays.size() != 1)
    throw bad_data("'{}' holds {} tensors, and should hold one, of token ids", path, file.arrays.size());
  return std::move(file.arrays.front());
}

template <typename Number>
at::Tensor bare_numbers(Bytes bytes, const std::string& path) {
  if (bytes.empty() || bytes.size() % sizeof(Number) != 0)
    throw bad_data("'{}' has {} bytes, which is no number of token ids of {} bytes", path, bytes.size(),
                   sizeof(Number));
  at::Tensor ids = at::empty({static_cast<int64_t>(bytes.size() / sizeof(Number))}, at::kLong);
  auto* to = ids.data_ptr<int64_t>();
  for (size_t at = 0; at < bytes.size(); at += sizeof(Number)) {
    Number number = 0;
    std::memcpy(&number, bytes.data() + at, sizeof(Number));
    *to++ = number;
  }
  return ids;
}

// Numbers of 4 bytes that would fit 2 have zeros in every other pair of bytes.
at::Tensor bare_ids(Bytes bytes, const std::string& path, int64_t vocabulary) {
  constexpr int64_t kTwoBytes = 65536;
  if (vocabulary > kTwoBytes) return bare_numbers<uint32_t>(bytes, path);
  const at::Tensor ids = bare_numbers<uint16_t>(bytes, path);
  const bool wide = ids.numel() % 2 == 0 && !ids.view({-1, 2}).select(1, 1).any().item<bool>();
  return wide ? bare_numbers<uint32_t>(bytes, path) : ids;
}

}  // namespace

bool is_token_file(const std::string& path) {
  return path.ends_with(".npy") || path.ends_with(".safetensors") || path.ends_with(".bin");
}

std::vector<int32_t> read_token_ids(const std::string& path, int64_t vocabulary) {
  if (!std::filesystem::exists(path)) throw error(Exit::kNoInput, "token ids '{}' do not exist", path);
  const MappedFile file(path);
  at::Tensor ids;
  if (path.ends_with(".bin")) {
    ids = bare_ids(file.bytes(), path, vocabulary);
  } else {
    const Array array = array_of_ids(file.bytes(), path);
    const at::Tensor values = rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]);
    if (!at::isIntegralType(values.scalar_type(), false))
      throw bad_data("'{}' holds numbers of type {}, and token ids are integers", path, name_of(array.dtype));
    ids = values.to(at::kLong).flatten();
  }
  if (ids.numel() == 0) throw bad_data("'{}' holds no token ids", path);
  const at::Tensor outside = at::nonzero((ids < 0).logical_or(ids >= vocabulary)).flatten();
  if (outside.numel() > 0) {
    const auto place = outside[0].item<int64_t>();
    throw bad_data("token id {} at place {} of '{}' is outside the model's vocabulary of {}",
                   ids[place].item<int64_t>(), place, path, vocabulary);
  }
  const at::Tensor narrow = ids.to(at::kInt);
  return {narrow.const_data_ptr<int32_t>(), narrow.const_data_ptr<int32_t>() + narrow.numel()};
}

std::string read_text(const std::string& path, const TextOptions& options) {
  if (!std::filesystem::exists(path)) throw error(Exit::kNoInput, "text '{}' does not exist", path);
  std::string text, name = path;
  {
    const MappedFile file(path);
    const Bytes bytes = file.bytes();
    if (looks_like_gzip(bytes)) {
      text = gunzip(bytes, path);
      if (name.ends_with(".gz")) name.resize(name.size() - 3);
    } else {
      text = text_of(bytes);
    }
  }
  const bool lines = name.ends_with(".jsonl");
  if (lines && options.layout == TextOptions::Layout::kRows)
    throw error(Exit::kUsage, "--text-layout rows is for plain text, and '{}' holds texts apart", path);
  if (lines) text = texts_of(text, path, options.field);
  if (options.layout == TextOptions::Layout::kRows) text = joined_rows(text);
  if (text.empty()) throw bad_data("text '{}' is empty; pass one with words in it", path);
  return text;
}

TokenWindows cut_windows(const std::vector<int32_t>& ids, int64_t length, int64_t stride, int64_t limit) {
  if (length < 2)
    throw error(Exit::kUsage, "a window of {} tokens predicts nothing; --seqlen is 2 at least", length);
  if (stride == 0) stride = length;
  if (stride > length)
    throw error(Exit::kUsage, "--stride {} is beyond --seqlen {}, so that tokens would be left out", stride,
                length);
  const auto total = static_cast<int64_t>(ids.size());
  if (total < length)
    throw bad_data("the text has {} tokens, fewer than one window of --seqlen {}", total, length);
  int64_t count = 1 + (total - length) / stride;
  if (limit > 0) count = std::min(count, limit);
  const at::Tensor all = at::empty({total}, at::kLong);
  std::copy(ids.begin(), ids.end(), all.data_ptr<int64_t>());
  return {all.unfold(0, length, stride).slice(0, 0, count), std::min(stride, length - 1), length - 1};
}

}  // namespace mcompress
